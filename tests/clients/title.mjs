// node title.mjs URL: opens a page in the browser at URL with Playwright and prints its title.
import { chromium } from 'playwright-core';

const browser = await chromium.connectOverCDP(process.argv[2]);
const [page] = browser.contexts()[0].pages();
await page.goto('data:text/html,<title>It works</title>');
console.log(await page.title());
await browser.close();
