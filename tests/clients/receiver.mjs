// A customer's receiver of webhooks, as Stripe tells its own customers to write one: each request is verified by Stripe's
// library. Tests tell it how to answer by POST /control, and ask what it received by GET /received. It speaks TLS, too, at another
// port. Arguments: the files of a certificate and its key, `--ready-file`, and where its addresses are to be written.
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import Stripe from 'stripe';

const [certificate, key, , readyFile] = process.argv.slice(2);
const webhooks = Stripe.webhooks;
const received = [];
// For each path: the secret, and the answers to come: statuses, `hang`, or a URL to redirect to. The last one stays.
const paths = new Map();

const read = async (request) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
};

const verify = (body, header, secret) => {
  try {
    return { event: webhooks.constructEvent(body, header, secret), fault: null };
  } catch (error) {
    return { event: null, fault: error.message };
  }
};

const answer = async (request, response) => {
  const body = await read(request);
  if (request.url === '/received') {
    response.setHeader('content-type', 'application/json');
    const text = JSON.stringify(received);
    response.setHeader('content-length', Buffer.byteLength(text));
    return response.end(text);
  }
  if (request.url === '/control') {
    const { path, ...settings } = JSON.parse(body);
    paths.set(path, { ...paths.get(path), ...settings });
    response.setHeader('content-length', 0);
    return response.end();
  }
  const hook = paths.get(request.url);
  const header = request.headers['ufbrowsers-signature'];
  received.push({
    path: request.url,
    method: request.method,
    contentType: request.headers['content-type'],
    signatures: (header ?? '').split(',v1=').length - 1,
    ...verify(body, header, hook?.secret ?? 'whsec_unknown'),
  });
  const [next = 200] = hook?.answers ?? [];
  if (hook?.answers?.length > 1) hook.answers.shift();
  if (next === 'hang') return undefined;
  response.statusCode = typeof next === 'number' ? next : 302;
  if (typeof next === 'string') response.setHeader('location', next);
  return response.end();
};

const listen = (server) =>
  new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(`127.0.0.1:${server.address().port}`)));
const http = await listen(createServer(answer));
const files = { cert: readFileSync(certificate), key: readFileSync(key) };
const https = await listen(createTlsServer(files, answer));
writeFileSync(`${readyFile}.draft`, JSON.stringify({ http, https }));
renameSync(`${readyFile}.draft`, readyFile);
