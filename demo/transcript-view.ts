/**
 * Draws the transcript. Everything below `[data-testid=transcript]` is a function of the log
 * alone: two tabs at the same offset show the same text.
 */
import type {
  Transcript,
  TranscriptApproval,
  TranscriptMessage,
  TranscriptPart,
  TranscriptRun,
  TranscriptSuspension,
} from '@everwire/client';
import { ApprovalCard, type Answer } from './approval-card.js';
import { element } from './dom.js';

interface Drawn {
  readonly article: HTMLElement;
  readonly ending: HTMLElement;
  readonly range: HTMLElement;
  readonly parts: Map<string, { readonly box: HTMLElement; readonly text: Text }>;
}

export class TranscriptView {
  readonly #drawn = new Map<string, Drawn>();
  readonly #cards = new Map<string, ApprovalCard>();

  constructor(
    private readonly box: HTMLElement,
    private readonly answer: Answer,
  ) {}

  /** Draws everything anew, in the order of the log. */
  reset(transcript: Transcript): void {
    this.#drawn.clear();
    this.#cards.clear();
    this.box.replaceChildren();
    const approvals = [...transcript.approvals];
    for (const message of transcript.messages) {
      while (approvals[0] !== undefined && approvals[0].requested < message.from)
        this.drawApproval(approvals.shift() as TranscriptApproval, transcript);
      this.draw(message, transcript);
    }
    for (const approval of approvals) this.drawApproval(approval, transcript);
  }

  /** Brings one request for an approval up to date. */
  drawApproval(approval: TranscriptApproval, transcript: Transcript): void {
    let card = this.#cards.get(approval.approval);
    if (card === undefined) {
      card = new ApprovalCard(approval, this.answer);
      this.#cards.set(approval.approval, card);
      this.box.append(card.article);
    }
    card.draw(approval, transcript.openApprovals.includes(approval));
  }

  /** Brings one message up to date, or takes it away. */
  draw(message: TranscriptMessage, transcript: Transcript): void {
    if (message.status === 'superseded') {
      this.#drawn.get(message.message)?.article.remove();
      this.#drawn.delete(message.message);
      return;
    }
    const drawn = this.#drawn.get(message.message) ?? this.#begin(message);
    const run = message.run === undefined ? undefined : transcript.run(message.run);
    const waits = run?.state === 'orphaned' || run?.state === 'suspended' ? ` ${run.state}` : '';
    drawn.article.className = `message ${message.role} ${message.status}${waits}`;
    for (const part of message.parts) this.#drawPart(drawn, part);
    const { from, to } = message;
    drawn.range.textContent = from === to ? `offset ${from}` : `offsets ${from}–${to}`;
    drawn.ending.textContent = ending(message, run);
  }

  #begin(message: TranscriptMessage): Drawn {
    const who = message.role === 'user' ? message.author.participant : 'agent';
    const [range, ending] = [element('span'), element('span', 'ending')];
    const head = element('header');
    head.append(who);
    const foot = element('footer');
    // Blanks, so that the text reads well where there is no layout.
    foot.append(range, ' ', ending);
    const article = element('article');
    article.append(head, ' ', foot);
    this.box.append(article);
    const drawn: Drawn = { article, ending, range, parts: new Map() };
    this.#drawn.set(message.message, drawn);
    return drawn;
  }

  #drawPart(drawn: Drawn, part: TranscriptPart): void {
    let known = drawn.parts.get(part.part);
    if (known === undefined) {
      const box = element('p', 'part');
      box.dataset['kind'] = part.part_kind;
      const text = document.createTextNode('');
      box.append(text);
      drawn.article.lastElementChild?.before(box);
      known = { box, text };
      drawn.parts.set(part.part, known);
    }
    const words = wordsOf(part);
    // Appending keeps a reader's selection, and costs what is new.
    if (words.startsWith(known.text.data)) known.text.appendData(words.slice(known.text.length));
    else known.text.data = words;
  }
}

function wordsOf(part: TranscriptPart): string {
  const data = part.data === undefined ? '' : ` ${JSON.stringify(part.data)}`;
  const name = part.name === undefined ? '' : `${part.name} `;
  const missing = part.missing > 0 ? `[${part.missing} bytes before] ` : '';
  return part.part_kind === 'text' ? missing + part.text : `${name}${missing}${part.text}${data}`;
}

function ending(message: TranscriptMessage, run: TranscriptRun | undefined): string {
  switch (message.status) {
    case 'cancelled':
      return run?.cancel_offset === undefined ? 'stopped' : stopped(run);
    case 'incomplete':
      return run?.reason === undefined ? 'incomplete' : `failed: ${run.reason}`;
    case 'open':
      return streaming(message, run);
    default:
      return message.role === 'user' ? '' : 'complete';
  }
}

function stopped({ cancel_offset, cancelled_by, observed_offset }: TranscriptRun): string {
  const where = `stopped at offset ${cancel_offset} by ${cancelled_by?.participant}`;
  const seen = observed_offset === undefined ? '' : `, seen by the agent at ${observed_offset}`;
  return where + seen;
}

/** An open message may have lost its writer, or have another one than at its start. */
function streaming(message: TranscriptMessage, run: TranscriptRun | undefined): string {
  if (run?.state === 'orphaned') return `no agent since offset ${run.orphaned}`;
  if (run?.suspended !== undefined) return waitsFor(run.suspended);
  const writer = run?.author?.participant ?? message.author.participant;
  return writer === message.author.participant ? 'streaming' : `streaming, now from ${writer}`;
}

/** Why a run does not write, and since when. */
export function waitsFor({ reason, offset, by }: TranscriptSuspension): string {
  if (reason === 'paused') return `paused at offset ${offset} by ${by.participant}`;
  const what = { approval: 'an approval', input: 'an input', auth: 'a sign-in' }[reason];
  return `waits for ${what} since offset ${offset}`;
}
