// The demo's web server: the page, the built client, and what a tab needs to connect.
// It outlives the edge, so the page can say that the edge is gone.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, normalize, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const HERE = fileURLToPath(new URL('.', import.meta.url));
const ROOT = join(HERE, '..');

/** Where the paths of the page lie on disk. */
const PLACES = [
  { prefix: '/sdk/', folder: join(ROOT, 'sdk/typescript/dist') },
  { prefix: '/dist/', folder: join(HERE, 'dist') },
];
const FILES = new Map([
  ['/', join(HERE, 'index.html')],
  ['/index.html', join(HERE, 'index.html')],
  ['/style.css', join(HERE, 'style.css')],
  ['/icon.svg', join(HERE, 'icon.svg')],
  // Browsers ask for it on pages that name no icon.
  ['/favicon.ico', join(HERE, 'icon.svg')],
  ['/plain.html', join(ROOT, 'docs/examples/plain.html')],
]);
const TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.map': 'application/json',
  '.svg': 'image/svg+xml',
};
const SESSION = /^[A-Za-z0-9._:~-]{1,128}$/;

/** Serves on loopback; `config(session, visitor)` answers what a tab needs. */
export async function serve(port, config) {
  const server = createServer((request, response) => {
    answer(request, response, config).catch((thrown) => {
      if (!response.headersSent) json(response, 503, { message: thrown.message });
      else response.destroy();
    });
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
  return server;
}

async function answer(request, response, config) {
  response.setHeader('x-content-type-options', 'nosniff');
  response.setHeader('referrer-policy', 'no-referrer');
  response.setHeader('cache-control', 'no-store');
  // A page of another name that resolves to us must not read a token.
  if (!isOurs(request.headers.host)) return json(response, 403, { message: 'not this host' });
  if (request.method !== 'GET' && request.method !== 'HEAD') return json(response, 405, {});
  const url = new URL(request.url, 'http://demo');
  if (url.pathname === '/config.json') {
    const session = url.searchParams.get('session') ?? '';
    if (!SESSION.test(session)) return json(response, 400, { message: 'session=NAME is missing' });
    return json(response, 200, await config(session, visitor(request, response)));
  }
  const file = fileOf(url.pathname);
  const found = file !== undefined && (await stat(file).catch(() => undefined))?.isFile();
  if (!found) return json(response, 404, { message: 'there is nothing here' });
  response.setHeader('content-type', TYPES[extname(file)] ?? 'application/octet-stream');
  createReadStream(file).pipe(response);
}

function isOurs(host = '') {
  return /^(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$/.test(host);
}

function fileOf(path) {
  const place = PLACES.find(({ prefix }) => path.startsWith(prefix));
  if (place === undefined) return FILES.get(path);
  const file = normalize(join(place.folder, decodeURIComponent(path.slice(place.prefix.length))));
  return file.startsWith(place.folder + sep) ? file : undefined;
}

/** Who is asking: one name per browser, so that two tabs are one person and a phone another. */
function visitor(request, response) {
  const [, known] =
    /(?:^|;\s*)visitor=(visitor-[a-z0-9]{6})(?:;|$)/.exec(request.headers.cookie ?? '') ?? [];
  if (known !== undefined) return known;
  const minted = `visitor-${Math.random().toString(36).slice(2, 8).padEnd(6, '0')}`;
  response.setHeader(
    'set-cookie',
    `visitor=${minted}; Path=/; HttpOnly; SameSite=Lax; Max-Age=31536000`,
  );
  return minted;
}

function json(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}
