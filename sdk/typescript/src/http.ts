/**
 * The edge's HTTP door: publish and signal without a socket.
 * In comes a request with its idempotency key; out goes the answer object, or an EverwireError
 * (code LOST if the network failed and nobody knows whether the request arrived: repeat it with
 * the same key).
 */
import { EverwireError } from './errors.js';
import { httpBase } from './link.js';
import type { EventDraft, Published, SignalFrame, SignalOutcome } from './protocol.js';

export type Fetch = typeof globalThis.fetch;

/** One request: where, as whom, under which key. */
export interface HttpCall {
  readonly url: string;
  readonly token: string;
  readonly session: string;
  readonly key: string;
  readonly signal?: AbortSignal;
}

/** Longest wait for an answer of the HTTP door, ms. */
const ANSWER_WITHIN_MS = 15_000;

export function httpPublish(fetch: Fetch, call: HttpCall, event: EventDraft): Promise<Published> {
  return post(fetch, call, 'events', event) as Promise<Published>;
}

/** Asks what the frame asks, whatever it is aimed at. */
export function httpSignal(
  fetch: Fetch,
  call: HttpCall,
  frame: SignalFrame,
): Promise<SignalOutcome> {
  const [path, body] = frame.signal === 'cancel' ? cancelRequest(frame) : signalRequest(frame);
  return post(fetch, call, path, body) as Promise<SignalOutcome>;
}

function signalRequest(frame: SignalFrame): [path: string, body: object] {
  const { t: _t, id: _id, session: _session, ...signal } = frame;
  return ['signal', signal];
}

/** Stops have addresses of their own, which older edges know as well. */
function cancelRequest(frame: SignalFrame & { signal: 'cancel' }): [path: string, body: object] {
  const { t: _t, id: _id, session: _session, signal: _signal, key: _key, ...cancel } = frame;
  const { run, ...more } = cancel;
  // So has the plain stop of a run, which every edge knows.
  const isPlain = run !== undefined && Object.keys(more).length === 0;
  return isPlain ? [`runs/${encodeURIComponent(run)}/cancel`, {}] : ['cancel', cancel];
}

async function post(fetch: Fetch, call: HttpCall, path: string, body: unknown): Promise<unknown> {
  const abort = new AbortController();
  const stop = (): void => abort.abort();
  call.signal?.addEventListener('abort', stop);
  const timer = setTimeout(stop, ANSWER_WITHIN_MS);
  try {
    const session = encodeURIComponent(call.session);
    const response = await fetch(`${httpBase(call.url)}/v1/sessions/${session}/${path}`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${call.token}`,
        'content-type': 'application/json',
        'idempotency-key': call.key,
      },
      body: JSON.stringify(body),
      signal: abort.signal,
    });
    const answer = await readJson(response);
    // An outcome such as `denied` may come with a status of its own; it is still the answer.
    if (response.ok || isOutcome(answer)) return answer;
    throw EverwireError.fromHttp(response.status, answer);
  } catch (thrown) {
    throw EverwireError.lost(thrown);
  } finally {
    clearTimeout(timer);
    call.signal?.removeEventListener('abort', stop);
  }
}

function isOutcome(answer: unknown): boolean {
  return typeof answer === 'object' && answer !== null && 'outcome' in answer;
}

/** The body as JSON; undefined if it is something else, such as a proxy's page. */
export async function readJson(response: Response): Promise<unknown> {
  const text = await response.text();
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
