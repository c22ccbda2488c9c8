//! Which addresses failed lately: they are passed over for a while, by everybody.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::limits::{SUSPECT_FOR, SUSPECT_FOR_MAX};
use tokio::time::Instant;

use crate::address::Address;

/// Addresses whose failures are remembered at once; above it the oldest news go.
const REMEMBERED_MAX: usize = 1_024;

/// See the module.
#[derive(Default)]
pub(crate) struct Standings(BTreeMap<Address, Standing>);

struct Standing {
    /// It answered once: a newer claim that it leads is worth a try.
    answered: bool,
    until: Option<Instant>,
    penalty: Duration,
}

impl Standings {
    /// It did not answer, or said that it is about to stop. Each failure in a row counts for
    /// longer: an address may be one that cannot be reached from here at all.
    pub(crate) fn failed(&mut self, address: &Address, now: Instant) {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(address) {
            self.0
                .retain(|_, one| one.until.is_some_and(|until| until > now));
            if self.0.len() >= REMEMBERED_MAX {
                self.0.pop_first();
            }
        }
        let one = self.of(address);
        if one.until.is_none_or(|until| until <= now) {
            one.until = Some(now + one.penalty);
            one.penalty = (one.penalty * 2).min(SUSPECT_FOR_MAX);
        }
    }

    /// It answered.
    pub(crate) fn answered(&mut self, address: &Address) {
        let one = self.of(address);
        *one = Standing {
            answered: true,
            until: None,
            penalty: SUSPECT_FOR,
        };
    }

    /// Others say that it leads now, or is alive again: it has come back, if it was ever here.
    pub(crate) fn back(&mut self, address: &Address) {
        if let Some(one) = self.0.get_mut(address)
            && one.answered
        {
            one.until = None;
        }
    }

    /// Whether to pass it over.
    pub(crate) fn suspect(&self, address: &Address, now: Instant) -> bool {
        let one = self.0.get(address).and_then(|one| one.until);
        one.is_some_and(|until| now < until)
    }

    fn of(&mut self, address: &Address) -> &mut Standing {
        self.0.entry(address.clone()).or_insert(Standing {
            answered: false,
            until: None,
            penalty: SUSPECT_FOR,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::parse;

    #[test]
    fn failures_count_for_longer_and_an_answer_forgives() {
        let (mut all, now) = (Standings::default(), Instant::now());
        let address = parse("a:1", false).unwrap();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!all.suspect(&address, now));
        all.failed(&address, now);
        all.failed(&address, now);
        assert!(all.suspect(&address, now) && !all.suspect(&address, after(1)));
        all.failed(&address, after(1));
        assert!(all.suspect(&address, after(2)) && !all.suspect(&address, after(3)));
        all.back(&address);
        assert!(all.suspect(&address, after(2)), "it has never answered");
        all.answered(&address);
        assert!(!all.suspect(&address, after(2)));
        all.failed(&address, after(9));
        assert!(!all.suspect(&address, after(10)));
        all.failed(&address, after(20));
        all.back(&address);
        assert!(!all.suspect(&address, after(20)));
    }

    #[test]
    fn few_are_remembered() {
        let (mut all, now) = (Standings::default(), Instant::now());
        for n in 0..2 * REMEMBERED_MAX {
            all.failed(&parse(&format!("a{n}:1"), false).unwrap(), now);
        }
        assert!(all.0.len() <= REMEMBERED_MAX);
    }
}
