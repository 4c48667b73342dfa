// The page that the clients visit. The browser runs on the same machine, so loopback is enough.
import { once } from 'node:events';
import { createServer } from 'node:http';

const PAGE = `<!doctype html><title>shop</title>
<button onclick="document.querySelector('output').value = 'sold'">buy</button> <output>ready</output>`;

/** Serves PAGE on a free port; answers its URL and how to stop it. */
export async function openSite() {
  const server = createServer((_request, response) => {
    response.setHeader('content-type', 'text/html; charset=utf-8');
    response.end(PAGE);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { url: `http://127.0.0.1:${server.address().port}/`, close };
}
