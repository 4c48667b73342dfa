"""What a user of Playwright for Python does in a session: python playwright_py.py wss://…

Prints one JSON line that says what was checked; anything else ends with an error.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from playwright.sync_api import sync_playwright

PAGE = b"""<!doctype html><title>shop</title>
<button onclick="document.querySelector('output').value = 'sold'">buy</button> <output>ready</output>"""
TEN = "0123456789"
REPLY_BYTES = 20_000_000
REQUEST_BYTES = 5_000_000


class Site(BaseHTTPRequestHandler):
    """Serves PAGE; the browser runs on the same machine, so loopback is enough."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        """Standard output and error are for what was checked."""


def check(endpoint, site):
    with sync_playwright() as playwright:
        browser = playwright.chromium.connect_over_cdp(endpoint)

        page = browser.contexts[0].pages[0]
        page.goto(site)
        page.get_by_role("button", name="buy").click()
        assert page.locator("output").text_content() == "sold"

        reply = page.evaluate("(times) => '0123456789'.repeat(times)", REPLY_BYTES // len(TEN))
        assert reply == TEN * (REPLY_BYTES // len(TEN)), "a large reply arrives whole"
        request = TEN * (REQUEST_BYTES // len(TEN))
        same = page.evaluate("(text) => text === '0123456789'.repeat(text.length / 10) && text.length", request)
        assert same == REQUEST_BYTES, "a large request arrives whole"

        pdf = page.pdf()
        assert pdf.startswith(b"%PDF-")

        second = browser.new_context()
        other = second.new_page()
        other.goto(site)
        assert other.title() == "shop"
        second.close()

        version = browser.version
        browser.close()
    return {
        "client": "playwright-python",
        "browser": version,
        "clicked": True,
        "replyBytes": len(reply),
        "requestBytes": same,
        "pdfBytes": len(pdf),
        "secondContext": True,
    }


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps(check(sys.argv[1], f"http://127.0.0.1:{server.server_port}/")))


main()
