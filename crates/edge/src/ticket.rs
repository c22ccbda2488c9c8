//! Tickets: a token in exchange for a word that works once, for `EventSource`, which can send no
//! header. A ticket may stand in a URL, and thus in somebody's log, because it is used up.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use everwire_core::{Code, Random, Refusal};
use tokio::time::Instant;

use crate::identity::Identity;
use crate::lanes::too_many;
use crate::wake::locked;

/// Tickets that wait for their use, over all callers and of one.
const TICKETS_MAX: usize = 10_000;
const TICKETS_OF_ONE_MAX: usize = 64;

struct Ticket {
    identity: Identity,
    ends: Instant,
}

/// The tickets that wait for their use. Each edge knows its own.
#[derive(Default)]
pub(crate) struct Tickets {
    waiting: Mutex<HashMap<String, Ticket>>,
}

impl Tickets {
    /// A ticket for a caller.
    pub(crate) fn mint(
        &self,
        identity: Identity,
        random: &dyn Random,
        ttl: Duration,
    ) -> Result<String, Refusal> {
        let now = Instant::now();
        let mut waiting = locked(&self.waiting);
        if waiting.len() >= TICKETS_MAX / 2 {
            waiting.retain(|_, ticket| ticket.ends > now);
        }
        let same =
            |ticket: &&Ticket| ticket.ends > now && ticket.identity.may_become(&identity).is_ok();
        if waiting.len() >= TICKETS_MAX
            || waiting.values().filter(same).count() >= TICKETS_OF_ONE_MAX
        {
            return Err(too_many(TICKETS_OF_ONE_MAX));
        }
        let mut name = String::with_capacity(32);
        let _ = write!(name, "{:016x}{:016x}", random.next(), random.next());
        let ticket = Ticket {
            identity,
            ends: now + ttl,
        };
        waiting.insert(name.clone(), ticket);
        Ok(name)
    }

    /// Takes a ticket. It works once, used well or not.
    pub(crate) fn redeem(&self, name: &str) -> Result<Identity, Refusal> {
        let ticket = locked(&self.waiting).remove(name);
        match ticket {
            Some(ticket) if ticket.ends > Instant::now() => Ok(ticket.identity),
            _ => {
                let message = "the ticket is unknown, used or too old";
                Err(Refusal::new(Code::Unauthenticated, message))
            },
        }
    }
}
