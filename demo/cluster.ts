/**
 * What the demo's supervisor knows of the cluster, asked again and again, and its two buttons.
 * The supervisor outlives every edge and every node, so this works while the session does not.
 */

export type State = 'alive' | 'starting' | 'dead';

export interface Member {
  readonly name: string;
  readonly state: State;
  /** While it is dead: how long until it is started again. */
  readonly back_in_ms: number | null;
}

export interface Node extends Member {
  /** How many shards it leads. */
  readonly leads: number;
}

export interface Shard {
  readonly id: number;
  readonly leader: string | null;
  readonly replicas: readonly string[];
}

export interface ClusterState {
  readonly nodes: readonly Node[];
  readonly edges: readonly Member[];
  readonly majority: boolean;
  readonly shards: readonly Shard[];
  /** Of this session; null until somebody knows. */
  readonly shard: number | null;
  /** The end of this session's log, when it was last asked for. */
  readonly tail: number | null;
  readonly agent: State;
}

export type Wish = { what: 'leader'; session: string } | { what: 'edge'; edge: string };

const ASK_EVERY_MS = 500;

export class ClusterWatch {
  state: ClusterState | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #asked = 0;

  /** `wantsTail`: whether nobody else tells this tab where the log ends. */
  constructor(
    private readonly session: string,
    private readonly wantsTail: () => boolean,
    private readonly changed: (now: ClusterState, before: ClusterState | undefined) => void,
  ) {
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') void this.#ask();
    });
    void this.#ask();
  }

  /** The shard of this session. */
  get shard(): Shard | undefined {
    return this.state?.shards.find(({ id }) => id === this.state?.shard);
  }

  /** kill -9; gives who was killed, or throws why nobody was. */
  async kill(wish: Wish): Promise<string> {
    const response = await fetch('/kill', { method: 'POST', body: JSON.stringify(wish) });
    const { killed, refused, message } = (await response.json()) as Record<string, string>;
    if (killed === undefined) throw new Error(refused ?? message ?? `HTTP ${response.status}`);
    void this.#ask();
    return killed;
  }

  async #ask(): Promise<void> {
    clearTimeout(this.#timer);
    this.#asked += 1;
    const mine = this.#asked;
    const tail = this.wantsTail() ? '&tail' : '';
    const session = encodeURIComponent(this.session);
    const now = await fetchState(`/cluster.json?session=${session}${tail}`);
    if (mine !== this.#asked) return;
    this.#timer = setTimeout(() => void this.#ask(), ASK_EVERY_MS);
    if (now === undefined) return;
    const before = this.state;
    this.state = now;
    this.changed(now, before);
  }
}

/** Undefined if the supervisor does not answer: then what was known last stays. */
async function fetchState(address: string): Promise<ClusterState | undefined> {
  try {
    const response = await fetch(address, { cache: 'no-store' });
    return response.ok ? ((await response.json()) as ClusterState) : undefined;
  } catch {
    return undefined;
  }
}
