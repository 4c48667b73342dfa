// One Playwright session for each line of stdin: {"url", "timeout"} → {"connect", "page", "load", "screenshot"} in
// milliseconds, or {"error"}. One process for all targets, so that each meets the same warm client.
// Arguments: the directory that has playwright-core in its node_modules.
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';

const PAGE = 'data:text/html,<!doctype html><title>bench</title><h1>bench</h1><p>one page, loaded</p>';

const { chromium } = createRequire(resolve(process.argv.at(-1), 'package.json'))('playwright-core');

async function session({ url, timeout }) {
  const begun = performance.now();
  const browser = await chromium.connectOverCDP(url, { timeout });
  try {
    const connected = performance.now();
    const page = await browser.contexts()[0].newPage();
    page.setDefaultTimeout(timeout);
    const opened = performance.now();
    await page.goto(PAGE);
    const loaded = performance.now();
    await page.screenshot();
    const taken = performance.now();
    // Behind the proxies stands one browser: a page that stayed would be attached to by every later session.
    await page.close();
    return {
      connect: connected - begun,
      page: opened - connected,
      load: loaded - opened,
      screenshot: taken - loaded,
      product: browser.version(),
    };
  } finally {
    await browser.close();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const result = await session(JSON.parse(line)).catch((error) => ({ error: String(error).split('\n')[0] }));
  console.log(JSON.stringify(result));
}
