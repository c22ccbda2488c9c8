//! When one socket must be looked at, and why. Pure: time is handed in.

use everwire_core::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

use crate::config::Timings;

/// The wall clock may jump, so a token is looked at again after at most this.
const TOKEN_LOOK_EVERY: Duration = Duration::from_secs(60);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nobody authenticated in time.
    AuthLate,
    /// The token has ended.
    Expired,
    /// The token ends soon.
    Expiring,
    /// The peer has taken nothing for too long.
    Slow,
    /// The peer has been silent for too long.
    Lost,
    /// It is time to ask whether the peer lives.
    Ping,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    /// When to say that it ends soon; `None` when that was said.
    tell: Option<Timestamp>,
    expires: Timestamp,
}

/// The timers of one socket.
#[derive(Debug)]
pub(crate) struct Timers {
    timings: Timings,
    opened: Instant,
    heard: Instant,
    pinged: Instant,
    token: Option<Token>,
}

impl Timers {
    /// The timers of a socket that opens now.
    pub(crate) fn new(timings: Timings, now: Instant) -> Self {
        Self {
            timings,
            opened: now,
            heard: now,
            pinged: now,
            token: None,
        }
    }

    /// Something came from the peer.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A token was taken.
    pub(crate) fn authenticated(&mut self, expires: Timestamp, wall: Timestamp) {
        let remaining = expires.since(wall);
        let before = self.timings.expiring_before.min(remaining / 2);
        self.token = Some(Token {
            tell: Some(wall.plus(remaining - before)),
            expires,
        });
    }

    /// What is due now, if anything: the most serious first. `blocked` is since when the peer
    /// has taken nothing.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        wall: Timestamp,
        blocked: Option<Instant>,
    ) -> Option<Due> {
        let timings = &self.timings;
        match &mut self.token {
            None if now >= self.opened + timings.auth_within => return Some(Due::AuthLate),
            Some(token) if wall >= token.expires => return Some(Due::Expired),
            _ => {},
        }
        if blocked.is_some_and(|since| now >= since + timings.slow_after) {
            return Some(Due::Slow);
        }
        if now >= self.heard + timings.lost_after {
            return Some(Due::Lost);
        }
        if let Some(token) = &mut self.token
            && token.tell.is_some_and(|at| wall >= at)
        {
            token.tell = None;
            return Some(Due::Expiring);
        }
        if now >= self.heard.max(self.pinged) + timings.heartbeat_every {
            self.pinged = now;
            return Some(Due::Ping);
        }
        None
    }

    /// When to look again.
    pub(crate) fn next(&self, now: Instant, wall: Timestamp, blocked: Option<Instant>) -> Instant {
        let timings = &self.timings;
        let life = (self.heard + timings.lost_after)
            .min(self.heard.max(self.pinged) + timings.heartbeat_every);
        let slow = blocked.map(|since| since + timings.slow_after);
        let token = match &self.token {
            None => self.opened + timings.auth_within,
            Some(token) => {
                let at = token.tell.unwrap_or(token.expires);
                now + at.since(wall).min(TOKEN_LOOK_EVERY)
            },
        };
        slow.map_or(life, |slow| slow.min(life)).min(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn wall(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000)
    }

    #[tokio::test]
    async fn a_silent_peer_is_pinged_then_lost() {
        let start = Instant::now();
        let mut timers = Timers::new(Timings::default(), start);
        timers.authenticated(wall(100_000), wall(0));
        assert_eq!(timers.next(start, wall(0), None), start + 10 * S);
        assert_eq!(timers.due(start + 10 * S, wall(10), None), Some(Due::Ping));
        assert_eq!(timers.due(start + 10 * S, wall(10), None), None);
        assert_eq!(timers.due(start + 20 * S, wall(20), None), Some(Due::Ping));
        assert_eq!(timers.next(start + 20 * S, wall(20), None), start + 25 * S);
        timers.heard(start + 21 * S);
        assert_eq!(timers.due(start + 25 * S, wall(25), None), None);
        assert_eq!(timers.due(start + 46 * S, wall(46), None), Some(Due::Lost));
    }

    #[tokio::test]
    async fn a_token_is_told_to_end_once_then_ends() {
        let start = Instant::now();
        let mut timers = Timers::new(Timings::default(), start);
        assert_eq!(
            timers.due(start + 10 * S, wall(10), None),
            Some(Due::AuthLate)
        );
        timers.authenticated(wall(300), wall(0));
        for second in [100, 239] {
            timers.heard(start + second * S);
            assert_eq!(
                timers.due(start + second * S, wall(second.into()), None),
                None
            );
        }
        timers.heard(start + 240 * S);
        assert_eq!(
            timers.due(start + 240 * S, wall(240), None),
            Some(Due::Expiring)
        );
        assert_eq!(timers.due(start + 240 * S, wall(240), None), None);
        assert_eq!(
            timers.due(start + 241 * S, wall(300), None),
            Some(Due::Expired)
        );
    }

    #[tokio::test]
    async fn a_short_token_is_told_at_half_its_life() {
        let start = Instant::now();
        let mut timers = Timers::new(Timings::default(), start);
        timers.authenticated(wall(20), wall(0));
        assert_eq!(timers.next(start, wall(0), None), start + 10 * S);
        timers.heard(start + 10 * S);
        assert_eq!(
            timers.due(start + 10 * S, wall(10), None),
            Some(Due::Expiring)
        );
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_slow() {
        let start = Instant::now();
        let mut timers = Timers::new(Timings::default(), start);
        timers.authenticated(wall(100_000), wall(0));
        timers.heard(start + 9 * S);
        let blocked = Some(start + 2 * S);
        assert_eq!(timers.next(start + 9 * S, wall(9), blocked), start + 12 * S);
        assert_eq!(timers.due(start + 11 * S, wall(11), blocked), None);
        assert_eq!(
            timers.due(start + 12 * S, wall(12), blocked),
            Some(Due::Slow)
        );
    }
}
