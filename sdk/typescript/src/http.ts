/**
 * The edge's HTTP door: publish and cancel without a socket.
 * In comes a request with its idempotency key; out goes the answer object, or an EverwireError
 * (code LOST if the network failed and nobody knows whether the request arrived: repeat it with
 * the same key).
 */
import { EverwireError } from './errors.js';
import { httpBase } from './link.js';
import type { CancelOutcome, EventDraft, Published, SignalFrame } from './protocol.js';

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
export function httpCancel(
  fetch: Fetch,
  call: HttpCall,
  frame: SignalFrame,
): Promise<CancelOutcome> {
  const { t: _t, id: _id, session: _session, signal: _signal, key: _key, ...cancel } = frame;
  const { run, ...more } = cancel;
  // The plain stop of a run has an address of its own, which every edge knows.
  const isPlain = run !== undefined && Object.keys(more).length === 0;
  const path = isPlain ? `runs/${encodeURIComponent(run)}/cancel` : 'cancel';
  return post(fetch, call, path, isPlain ? {} : cancel) as Promise<CancelOutcome>;
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
