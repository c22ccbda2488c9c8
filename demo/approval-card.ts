/**
 * One request for an approval, as a card: what is to be done, and two buttons until somebody has
 * answered. What it says is a function of the log alone.
 */
import type { TranscriptApproval, Verdict } from '@everwire/client';
import { element, setText } from './dom.js';

/** Sends an answer; over when it is known what came of it. */
export type Answer = (approval: TranscriptApproval, verdict: Verdict) => Promise<void>;

export class ApprovalCard {
  readonly article = element('article');
  readonly #buttons = element('div', 'buttons');
  readonly #ending = element('span', 'ending');

  constructor(approval: TranscriptApproval, answer: Answer) {
    this.article.dataset['testid'] = 'approval';
    this.#buttons.append(
      this.#button('Approve', () => answer(approval, 'approve')),
      ' ',
      this.#button('Deny', () => answer(approval, 'deny')),
    );
    const foot = element('footer');
    foot.append(element('span', '', `offset ${approval.requested}`), ' ', this.#ending);
    // Blanks, so that the text reads well where there is no layout.
    this.article.append(
      element('header', '', 'approval'),
      ' ',
      element('p', 'action', approval.action),
      ' ',
      element('pre', 'data', dataOf(approval)),
      ' ',
      this.#buttons,
      ' ',
      foot,
    );
  }

  /** `isOpen`: it may still be answered. */
  draw(approval: TranscriptApproval, isOpen: boolean): void {
    // Its run has ended, and withdraws it with the next event.
    const state = isOpen ? 'open' : (approval.outcome ?? 'withdrawn');
    this.article.className = `approval ${state}`;
    this.article.dataset['state'] = state;
    if (!isOpen) this.#buttons.remove();
    setText(this.#ending, isOpen ? until(approval) : became(approval));
  }

  #button(text: 'Approve' | 'Deny', press: () => Promise<void>): HTMLElement {
    const button = element('button', text === 'Approve' ? 'primary' : 'stop', text);
    button.setAttribute('type', 'button');
    button.dataset['testid'] = text.toLowerCase();
    button.addEventListener('click', () => {
      const all = this.#buttons.querySelectorAll('button');
      for (const each of all) each.disabled = true;
      void press().finally(() => {
        for (const each of all) each.disabled = false;
      });
    });
    return button;
  }
}

function dataOf({ data, data_base64 = '' }: TranscriptApproval): string {
  return data === undefined ? data_base64 : JSON.stringify(data, null, 2);
}

/** In UTC, so that every tab says the same. */
function until({ deadline, on_expiry, approvers }: TranscriptApproval): string {
  const time = `${deadline.slice(0, 19).replace('T', ' ')} UTC`;
  const whose = approvers === undefined ? '' : `for ${approvers.join(', ')}, `;
  return `${whose}until ${time}; then it ${counts(on_expiry)}`;
}

function became({ outcome, by, resolved, note, on_expiry }: TranscriptApproval): string {
  if (outcome === 'expired') return `expired: ${counts(on_expiry)}`;
  if (outcome !== 'approved' && outcome !== 'denied') return 'withdrawn';
  const said = note === undefined ? '' : `: ${note}`;
  return `${outcome} by ${by?.participant} at offset ${resolved}${said}`;
}

function counts(on_expiry: Verdict): string {
  return on_expiry === 'approve' ? 'counts as approved' : 'counts as denied';
}
