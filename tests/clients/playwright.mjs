// What a Playwright user does in a session: node playwright.mjs wss://…
// Prints one JSON line that says what was checked; anything else ends with an error.
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';
import { openSite } from './site.mjs';

const TEN = '0123456789';
const REPLY_BYTES = 20_000_000;
const REQUEST_BYTES = 5_000_000;

const site = await openSite();
const browser = await chromium.connectOverCDP(process.argv[2]);

const context = browser.contexts()[0];
const page = context.pages()[0];
assert(page, 'a session begins with a page in its default context');
await page.goto(site.url);
await page.getByRole('button', { name: 'buy' }).click();
assert.equal(await page.locator('output').textContent(), 'sold');

const reply = await page.evaluate((times) => '0123456789'.repeat(times), REPLY_BYTES / TEN.length);
assert(reply === TEN.repeat(REPLY_BYTES / TEN.length), 'a large reply arrives whole');
const request = TEN.repeat(REQUEST_BYTES / TEN.length);
const same = await page.evaluate((text) => text === '0123456789'.repeat(text.length / 10) && text.length, request);
assert.equal(same, REQUEST_BYTES, 'a large request arrives whole');

const pdf = await page.pdf();
assert.equal(pdf.subarray(0, 5).toString('latin1'), '%PDF-');

const second = await browser.newContext();
const other = await second.newPage();
await other.goto(site.url);
assert.equal(await other.title(), 'shop');
await second.close();

const version = browser.version();
await browser.close();
site.close();
console.log(JSON.stringify({
  client: 'playwright',
  browser: version,
  clicked: true,
  replyBytes: reply.length,
  requestBytes: same,
  pdfBytes: pdf.length,
  secondContext: true,
}));
