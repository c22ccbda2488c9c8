//! The way of one piece of work: where it goes, and where it goes next when that fails.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::{ANSWER_LATE_AFTER, LEADERLESS_PAUSE_MAX, SUPERSEDED_GRACE};
use everwire_core::{Code, Namespace, SessionName, Slot};
use everwire_proto::token::claimed_namespace;

use crate::address::Address;
use crate::backoff;
use crate::call::{Failure, Next};
use crate::connection::{Connections, Lane};
use crate::map::Leader;

/// Failures in a row that are followed by another attempt at once, at another address.
const JUMPS_MAX: u32 = 3;
/// Failures in a row for which an election may be to blame. Behind them pauses grow as usual, and
/// whoever watches the map is woken all the same.
const ELECTION_FAILURES_MAX: u32 = 40;

/// What a piece of work needs of the node that it goes to.
#[derive(Clone, Debug)]
pub(crate) enum Aim {
    /// Any node.
    Anywhere,
    /// A replica of the session's shard; for an edge's token in this namespace.
    Reads(SessionName, Option<Namespace>),
    /// The leader of the session's shard, for any other node would send it on.
    Writes(SessionName),
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Route {
    aim: Aim,
    /// The session's; `None` while its namespace is not known.
    slot: Option<Slot>,
    address: Address,
    /// `address` was chosen because it leads in this term.
    leads: Option<u64>,
    /// A leader that a refusal named while there was no map.
    hinted: Option<Address>,
    /// In a row, since it was last known who leads.
    failures: u32,
    /// The newest term whose leader was gone to.
    news: Option<u64>,
    /// That this choice went well was told to everybody.
    told: bool,
}

/// How soon to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once: it goes to another address.
    Now,
    /// After the usual pause, or as soon as somebody else leads than this.
    Pause(Leader),
}

impl Route {
    /// A way that is not chosen yet.
    pub(crate) fn new(connections: &Connections, aim: Aim) -> Self {
        Self {
            aim,
            slot: None,
            address: connections.current(),
            leads: None,
            hinted: None,
            failures: 0,
            news: None,
            told: false,
        }
    }

    /// Where it goes now, by what is known at this moment.
    pub(crate) fn choose(
        &mut self,
        connections: &Arc<Connections>,
        lane: Lane,
        token: &str,
    ) -> &Address {
        self.told = false;
        let (session, namespace) = match &self.aim {
            Aim::Anywhere => {
                self.address = connections.current();
                return &self.address;
            },
            Aim::Reads(session, namespace) => (session, namespace.clone()),
            Aim::Writes(session) => (session, None),
        };
        connections.watch(lane);
        if self.slot.is_none() {
            let namespace = namespace.or_else(|| claimed_namespace(token));
            self.slot = namespace.map(|namespace| Slot::of(&namespace, session));
        }
        (self.address, self.leads) = match (&self.aim, self.leader(connections)) {
            (Aim::Writes(_), Leader::At(address, term)) => (address, Some(term)),
            (Aim::Writes(_), Leader::Unmapped) if self.hinted.is_some() => (
                self.hinted.take().unwrap_or_else(|| connections.current()),
                None,
            ),
            _ => (connections.replica(self.slot), None),
        };
        &self.address
    }

    /// The address of the last choice.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// There was progress. An opening alone is none: a node that opens everything and then
    /// refuses it must not be asked without a pause.
    pub(crate) fn answered(&mut self, connections: &Connections) {
        self.failures = 0;
        if !std::mem::replace(&mut self.told, true) {
            connections.answered(&self.address);
        }
    }

    /// An attempt failed: notes what that says about nodes, for everybody, and answers how soon
    /// to try again.
    pub(crate) fn failed(&mut self, connections: &Connections, failure: &Failure) -> Pace {
        let refusal = &failure.refusal;
        self.failures = self.failures.saturating_add(1);
        let writes = matches!(self.aim, Aim::Writes(_));
        let mut named = false;
        match (failure.next(), refusal.code) {
            (_, Code::NotLeader | Code::NoQuorum) => {
                connections.leads_not(self.slot, &self.address);
                let hint = refusal.details.leader.as_deref();
                let hint = hint.and_then(|text| connections.hinted(text));
                match hint.filter(|hint| *hint != self.address) {
                    Some(hint) if self.leader(connections) == Leader::Unmapped => {
                        self.hinted = Some(hint);
                        named = true;
                    },
                    Some(hint) => {
                        connections.hint(self.slot, hint, refusal.details.term);
                    },
                    None => connections.leave(&self.address),
                }
            },
            (Next::Elsewhere, _) => connections.failed(&self.address),
            _ => return Pace::Pause(self.leader(connections)),
        }
        let next = match self.leader(connections) {
            Leader::At(address, term) if writes => {
                if address != self.address && self.news.is_none_or(|known| term > known) {
                    // The failures of an election that is over say nothing of who was elected;
                    // and elections are rare, so this is no way to ask without a pause.
                    (self.news, self.failures) = (Some(term), 1);
                }
                address
            },
            _ => connections.replica(self.slot),
        };
        let other = named || next != self.address;
        if other && self.failures <= JUMPS_MAX {
            return Pace::Now;
        }
        Pace::Pause(self.leader(connections))
    }

    /// Waits before the next attempt.
    pub(crate) async fn wait(&self, connections: &Connections, pace: Pace, pause: Duration) {
        let Pace::Pause(before) = pace else { return };
        if !matches!(self.aim, Aim::Writes(_)) {
            return tokio::time::sleep(pause).await;
        }
        // An election is short: whoever waits for one must not sleep through its end.
        let election = before == Leader::Nobody && self.failures <= ELECTION_FAILURES_MAX;
        let bound = if election {
            LEADERLESS_PAUSE_MAX
        } else {
            backoff::bound(self.failures.saturating_sub(1))
        };
        let pause = within(pause, bound);
        let elected = connections.until(|connections| {
            let leader = self.leader(connections);
            (matches!(leader, Leader::At(..)) && leader != before).then_some(())
        });
        let _ = tokio::time::timeout(pause, elected).await;
    }

    /// Resolves when somebody else leads than whoever this was sent to, and answers had time to
    /// come all the same.
    pub(crate) async fn superseded(&self, connections: &Connections) {
        let other = |connections: &Connections| match self.leader(connections) {
            Leader::At(address, term) => {
                let newer = self.leads.is_none_or(|leads| term > leads);
                (newer && address != self.address).then_some(())
            },
            Leader::Unmapped | Leader::Nobody => None,
        };
        loop {
            connections.until(other).await;
            tokio::time::sleep(SUPERSEDED_GRACE).await;
            if other(connections).is_some() {
                return;
            }
        }
    }

    /// Resolves when an attempt is in vain: it is late, and another leads by now.
    pub(crate) async fn in_vain(&self, connections: &Connections) {
        if !matches!(self.aim, Aim::Writes(_)) {
            return std::future::pending().await;
        }
        if self.leads.is_none() {
            // It was sent to one who passes it on, and who may know better than this client.
            tokio::time::sleep(ANSWER_LATE_AFTER).await;
            return self.superseded(connections).await;
        }
        let superseded = self.superseded(connections);
        tokio::pin!(superseded);
        tokio::select! {
            () = &mut superseded => return,
            () = tokio::time::sleep(ANSWER_LATE_AFTER) => connections.doubt(&self.address),
        }
        superseded.await;
    }

    fn leader(&self, connections: &Connections) -> Leader {
        connections.leader(self.slot)
    }
}

/// A pause of any length as one below a bound, still spread over it.
fn within(pause: Duration, bound: Duration) -> Duration {
    let micros = pause.as_micros() % bound.as_micros().max(1);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
