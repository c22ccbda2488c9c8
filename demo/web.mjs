// The demo's web server: the page, the built client, what a tab needs to connect, how the cluster
// stands, and the buttons that kill. It outlives every edge and every node.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, normalize, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NotNow } from './cluster.mjs';

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
/** The names by which we are reached. */
export const HOSTS = ['127.0.0.1', 'localhost', '[::1]'];
const SESSION = /^[A-Za-z0-9._:~-]{1,128}$/;

/** The longest wish, bytes. */
const WISH_MAX = 1_000;

/**
 * Serves on loopback. `config(session, visitor)` answers what a tab needs, `view(session, tail)`
 * how the cluster stands, `kill({what, session, edge})` kills and gives a name.
 */
export async function serve(port, doors) {
  const server = createServer((request, response) => {
    answer(request, response, doors).catch((thrown) => {
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

async function answer(request, response, doors) {
  response.setHeader('x-content-type-options', 'nosniff');
  response.setHeader('referrer-policy', 'no-referrer');
  response.setHeader('cache-control', 'no-store');
  // A page of another name that resolves to us must not read a token.
  if (!isOurs(request.headers.host)) return json(response, 403, { message: 'not this host' });
  const url = new URL(request.url, 'http://demo');
  const session = url.searchParams.get('session') ?? '';
  if (request.method === 'POST' && url.pathname === '/kill') {
    // A page of another origin can send this, though not read the answer.
    if (request.headers.origin !== `http://${request.headers.host}`)
      return json(response, 403, { message: 'not this origin' });
    const wanted = await wish(request);
    if (wanted === undefined) return json(response, 400, { message: 'this is not a wish' });
    return json(response, 200, await killed(doors, wanted));
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') return json(response, 405, {});
  if (url.pathname === '/config.json' || url.pathname === '/cluster.json') {
    if (!SESSION.test(session)) return json(response, 400, { message: 'session=NAME is missing' });
    if (url.pathname === '/cluster.json')
      return json(response, 200, doors.view(session, url.searchParams.has('tail')));
    return json(response, 200, await doors.config(session, visitor(request, response)));
  }
  const file = fileOf(url.pathname);
  const found = file !== undefined && (await stat(file).catch(() => undefined))?.isFile();
  if (!found) return json(response, 404, { message: 'there is nothing here' });
  response.setHeader('content-type', TYPES[extname(file)] ?? 'application/octet-stream');
  createReadStream(file).pipe(response);
}

/** What is asked for: {what: 'leader', session} or {what: 'edge', edge}; else undefined. */
async function wish(request) {
  let text = '';
  for await (const piece of request) {
    text += piece;
    if (text.length > WISH_MAX) return undefined;
  }
  try {
    const { what, session, edge } = JSON.parse(text);
    if (what === 'leader' && SESSION.test(session)) return { what, session };
    if (what === 'edge' && typeof edge === 'string') return { what, edge };
  } catch {
    // Not JSON.
  }
  return undefined;
}

/** That there is nobody to kill is an answer, not an error. */
async function killed(doors, wanted) {
  try {
    return { killed: await doors.kill(wanted) };
  } catch (thrown) {
    if (thrown instanceof NotNow) return { refused: thrown.message };
    throw thrown;
  }
}

function isOurs(host = '') {
  return HOSTS.includes(host.replace(/:\d+$/, ''));
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
