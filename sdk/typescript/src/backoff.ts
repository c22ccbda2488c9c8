/** How long to wait before the next try: exponential with full jitter. Pure. */

export interface BackoffOptions {
  /** Upper bound of the first wait, ms. */
  readonly firstMs: number;
  /** Upper bound of every wait, ms. */
  readonly maxMs: number;
}

export const BACKOFF_DEFAULT: BackoffOptions = { firstMs: 250, maxMs: 10_000 };

/**
 * A random wait between 0 and `firstMs * 2^attempt`, at most `maxMs`. Full jitter spreads the
 * clients of a lost edge over the whole window instead of bringing them back in waves.
 */
export function backoffMs(options: BackoffOptions, attempt: number, random: () => number): number {
  const bound = Math.min(options.maxMs, options.firstMs * 2 ** Math.min(attempt, 30));
  return Math.floor(random() * bound);
}
