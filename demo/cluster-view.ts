/** Draws the cluster: who lives, who leads which shard, and the way of this session through it. */
import type { ClusterState, Member, Node, Shard } from './cluster.js';
import { byId, element, setText } from './dom.js';

/** What this tab knows of itself. */
export interface TabState {
  /** The edge that it is connected to. */
  readonly edge: string | undefined;
  readonly connection: string;
  readonly connectionText: string;
  /** Whether an answer is on its way. */
  readonly flowing: boolean;
}

export class ClusterView {
  readonly #members = new Map<string, HTMLElement>();
  readonly #cells = new Map<number, HTMLElement>();

  show(state: ClusterState, tab: TabState): void {
    const shard = state.shards.find(({ id }) => id === state.shard);
    this.#summary(state);
    this.#way(state, shard, tab);
    for (const node of state.nodes) this.#node(node, shard);
    for (const edge of state.edges) this.#edge(edge, tab);
    for (const each of state.shards) this.#shard(each, state);
    byId<HTMLButtonElement>('kill-leader').disabled = shard?.leader == null;
    byId<HTMLButtonElement>('kill-edge').disabled = tab.edge === undefined;
  }

  #summary({ nodes, edges, majority }: ClusterState): void {
    const alive = (members: readonly Member[]): number =>
      members.filter(({ state }) => state === 'alive').length;
    const whole = alive(nodes) === nodes.length && alive(edges) === edges.length;
    const box = byId('cluster-state');
    box.dataset['state'] = majority ? (whole ? 'whole' : 'degraded') : 'lost';
    const some = `${alive(nodes)} of ${nodes.length} nodes`;
    const all = `${some}, ${alive(edges)} of ${edges.length} edges`;
    setText(box, majority ? all : `No majority: ${some}`);
  }

  #way(state: ClusterState, shard: Shard | undefined, tab: TabState): void {
    const leader = shard?.leader ?? undefined;
    const none = shard === undefined ? '…' : state.majority ? 'electing' : 'nobody';
    const works = tab.flowing && leader !== undefined ? 'writing' : 'waiting';
    this.#stop('agent', state.agent, state.agent === 'alive' ? works : 'starting');
    this.#stop('leader', leader === undefined ? 'dead' : 'alive', leader ?? none);
    const leads = leader === undefined ? 'shard' : 'leads shard';
    setText(byId('way-shard'), shard === undefined ? 'leader' : `${leads} ${shard.id}`);
    setText(byId('way-copies'), copies(state, shard));
    this.#stop('edge', tab.edge === undefined ? 'dead' : 'alive', tab.edge ?? 'none');
    this.#stop('tab', tab.connection === 'live' ? 'alive' : 'dead', tab.connectionText);
    byId('way').dataset['flowing'] = String(tab.flowing && leader !== undefined);
  }

  #stop(id: string, state: string, who: string): void {
    byId(`way-${id}`).dataset['state'] = state;
    setText(byId(`way-${id}-who`), who);
  }

  #node(node: Node, shard: Shard | undefined): void {
    const row = this.#member(node, 'nodes');
    const leads = `leads ${node.leads} ${node.leads === 1 ? 'shard' : 'shards'}`;
    setText(row.lastElementChild as HTMLElement, node.state === 'alive' ? leads : comesBack(node));
    row.dataset['here'] = String(shard?.leader === node.name);
  }

  #edge(edge: Member, { edge: mine }: TabState): void {
    const row = this.#member(edge, 'edges');
    const here = edge.name === mine;
    const serves = here ? 'serves this tab' : 'stands by';
    setText(row.lastElementChild as HTMLElement, edge.state === 'alive' ? serves : comesBack(edge));
    row.dataset['here'] = String(here);
  }

  #member({ name, state }: Member, list: string): HTMLElement {
    let row = this.#members.get(name);
    if (row === undefined) {
      row = element('li', `member ${name}`);
      const head = element('div', 'head');
      head.append(element('b', 'name', name), ' ', element('span', 'state'));
      row.append(head, ' ', element('span', 'what'));
      byId(list).append(row);
      this.#members.set(name, row);
    }
    row.dataset['state'] = state;
    setText(row.querySelector('.state') as HTMLElement, state);
    return row;
  }

  #shard({ id, leader }: Shard, { shard, majority }: ClusterState): void {
    let cell = this.#cells.get(id);
    if (cell === undefined) {
      cell = element('li', 'shard');
      cell.append(element('span', 'id', String(id)), ' ', element('b', 'leader'));
      byId('shards').append(cell);
      this.#cells.set(id, cell);
    }
    cell.dataset['leader'] = leader ?? 'none';
    cell.dataset['here'] = String(id === shard);
    cell.title = leader === null ? `shard ${id} has no leader` : `shard ${id} is led by ${leader}`;
    const label = leader === null ? (majority ? '…' : '–') : short(leader);
    setText(cell.lastElementChild as HTMLElement, label);
  }
}

function comesBack({ state, back_in_ms }: Member): string {
  return state === 'dead' ? `back in ${Math.ceil((back_in_ms ?? 0) / 1000)} s` : 'coming back';
}

/** The other replicas of this session, those that live. */
function copies({ nodes }: ClusterState, shard: Shard | undefined): string {
  const alive = (name: string): boolean =>
    nodes.some((node) => node.name === name && node.state === 'alive');
  const others = shard?.replicas.filter((name) => name !== shard.leader && alive(name)) ?? [];
  if (shard === undefined) return '';
  return others.length === 0 ? 'no copy' : `copies ${others.map(short).join(', ')}`;
}

/** As shards and copies are labelled. */
function short(name: string): string {
  return name.replace('node-', 'n');
}
