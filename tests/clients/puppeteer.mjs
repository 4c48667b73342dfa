// What a Puppeteer user does in a session: node puppeteer.mjs wss://…
// Prints one JSON line that says what was checked; anything else ends with an error.
import assert from 'node:assert/strict';
import puppeteer from 'puppeteer-core';
import { openSite } from './site.mjs';

const TEN = '0123456789';
const REPLY_BYTES = 20_000_000;
const REQUEST_BYTES = 5_000_000;

const site = await openSite();
const browser = await puppeteer.connect({ browserWSEndpoint: process.argv[2] });

const [page] = await browser.pages();
assert(page, 'a session begins with a page in its default context');
await page.goto(site.url);
await page.click('button');
assert.equal(await page.$eval('output', (output) => output.value), 'sold');

const reply = await page.evaluate((times) => '0123456789'.repeat(times), REPLY_BYTES / TEN.length);
assert(reply === TEN.repeat(REPLY_BYTES / TEN.length), 'a large reply arrives whole');
const request = TEN.repeat(REQUEST_BYTES / TEN.length);
const same = await page.evaluate((text) => text === '0123456789'.repeat(text.length / 10) && text.length, request);
assert.equal(same, REQUEST_BYTES, 'a large request arrives whole');

const pdf = await page.pdf();
assert.equal(Buffer.from(pdf.subarray(0, 5)).toString('latin1'), '%PDF-');

const second = await browser.createBrowserContext();
const other = await second.newPage();
await other.goto(site.url);
assert.equal(await other.title(), 'shop');
await second.close();

const version = await browser.version();
// Unlike Playwright's, this `close` sends `Browser.close`: the browser itself exits.
await browser.close();
site.close();
console.log(JSON.stringify({
  client: 'puppeteer',
  browser: version,
  clicked: true,
  replyBytes: reply.length,
  requestBytes: same,
  pdfBytes: pdf.length,
  secondContext: true,
}));
