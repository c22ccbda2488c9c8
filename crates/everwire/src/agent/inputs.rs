//! Which inputs of a session wait for an answer, read from its log.

use std::collections::{BTreeSet, VecDeque};

use everwire_client::{Client, SubscribeOptions, Subscriber, SubscriberEvent};
use everwire_core::{Body, Code, Event, InputId, InputRef, Offset, Refusal, SessionName};

/// An input that waits for its answer.
pub(super) struct Waiting {
    pub(super) input: InputRef,
    /// Whether it is answered only with an approval.
    pub(super) asks: bool,
}

/// The inputs of a session that no run has answered, oldest first.
pub(super) struct Inputs {
    subscriber: Subscriber,
    waiting: VecDeque<Waiting>,
    /// The word of inputs that are not answered without an approval.
    ask_word: Option<String>,
    answered: BTreeSet<InputId>,
    /// The tail when first attached: what waits is known once the past up to here was read.
    past: Option<Offset>,
    caught_up: bool,
}

impl Inputs {
    pub(super) fn new(client: &Client, session: &SessionName, ask_word: Option<String>) -> Self {
        let options = SubscribeOptions {
            create: true,
            ..SubscribeOptions::default()
        };
        Self {
            subscriber: client.subscribe(session, options),
            waiting: VecDeque::new(),
            ask_word,
            answered: BTreeSet::new(),
            past: None,
            caught_up: false,
        }
    }

    /// The next input that waits; it counts as taken.
    pub(super) async fn next(&mut self) -> Result<Waiting, Refusal> {
        loop {
            if self.caught_up
                && let Some(input) = self.waiting.pop_front()
            {
                return Ok(input);
            }
            match self.subscriber.next().await {
                SubscriberEvent::Attached { from, tail, .. } => {
                    self.past.get_or_insert(tail);
                    self.reached(from.previous());
                },
                SubscriberEvent::Events { to, events, .. } => {
                    events.iter().for_each(|event| self.take(event));
                    self.reached(to);
                },
                SubscriberEvent::Alive { .. } | SubscriberEvent::Disconnected { .. } => {},
                SubscriberEvent::Gone { .. } => {
                    return Err(Refusal::new(Code::Gone, "the session was deleted"));
                },
                SubscriberEvent::NotFound => {
                    return Err(Refusal::new(
                        Code::UnknownSession,
                        "there is no such session",
                    ));
                },
                SubscriberEvent::Ended(refusal) => return Err(refusal),
            }
        }
    }

    fn reached(&mut self, offset: Offset) {
        self.caught_up |= self.past.is_some_and(|past| offset >= past);
    }

    fn take(&mut self, event: &Event) {
        match &event.body {
            Body::Input { input, text, .. } if !self.answered.contains(input) => {
                let word = self.ask_word.as_deref();
                self.waiting.push_back(Waiting {
                    input: InputRef {
                        input: input.clone(),
                        author: Some(event.author.participant.clone()),
                    },
                    asks: word.is_some_and(|word| text.contains(word)),
                });
            },
            Body::RunStarted {
                input: Some(answered),
                ..
            } => {
                self.waiting
                    .retain(|waiting| waiting.input.input != answered.input);
                self.answered.insert(answered.input.clone());
            },
            _ => {},
        }
    }
}
