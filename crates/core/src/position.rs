//! Places: where an event stands, what a reader has seen, which writer may write.
//!
//! There are three epochs and they never mix: [`SessionEpoch`] (which history), [`RunEpoch`]
//! (which writer of a run) and, with human handoff, a floor epoch.

use std::fmt;
use std::str::FromStr;

use crate::ids::SessionNo;

/// Place of an event in its session. Dense, 1-based; [`Offset::ZERO`] is the place before the
/// first event. A cursor holds the offset of the last event *seen*, so a reader goes on at
/// [`Offset::next`]. At most 2^53 - 1, so that JSON numbers hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(u64);

impl Offset {
    /// The place before the first event.
    pub const ZERO: Self = Self(0);
    /// The largest offset that a JSON number holds exactly.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// An offset from a number; `None` above 2^53 - 1.
    pub fn new(number: u64) -> Option<Self> {
        (number <= Self::MAX.0).then_some(Self(number))
    }

    /// The offset as a number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The place after this one.
    pub fn next(self) -> Self {
        assert!(self < Self::MAX, "a session of 2^53 events");
        Self(self.0 + 1)
    }

    /// The place before this one; zero stays zero.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The place `count` events later.
    pub fn plus(self, count: u64) -> Self {
        Self::new(self.0.saturating_add(count)).expect("a session of 2^53 events")
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which history a session has: it changes when a session is deleted and made anew, and when a
/// cluster is restored. Clients compare it for equality and never look inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionEpoch {
    /// Rises at every restore and unsafe recovery of the cluster.
    pub timeline: u32,
    /// The session's number in its slot.
    pub session_no: SessionNo,
}

/// A position that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Not of the form `<timeline>-<number>`.
    #[error("a session epoch looks like 1-17")]
    Epoch,
    /// Not of the form `<session_epoch>.<offset>`.
    #[error("a cursor looks like 1-17.42")]
    Cursor,
}

impl fmt::Display for SessionEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.timeline, self.session_no.0)
    }
}

impl FromStr for SessionEpoch {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (timeline, number) = text.split_once('-').ok_or(PositionError::Epoch)?;
        let timeline = timeline.parse().ok().ok_or(PositionError::Epoch)?;
        let number = number.parse().ok().ok_or(PositionError::Epoch)?;
        Ok(Self {
            timeline,
            session_no: SessionNo(number),
        })
    }
}

/// What a reader has seen: the last offset, in which history.
/// Written `<session_epoch>.<offset>` where one string must hold it (SSE event ids).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// `None` means the session as it is now: a bare offset given by a person.
    pub session_epoch: Option<SessionEpoch>,
    /// The last event seen; [`Offset::ZERO`] to start at the beginning.
    pub offset: Offset,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.session_epoch {
            Some(epoch) => write!(f, "{epoch}.{}", self.offset),
            None => write!(f, "{}", self.offset),
        }
    }
}

impl FromStr for Cursor {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let offset = |text: &str| {
            text.parse()
                .ok()
                .and_then(Offset::new)
                .ok_or(PositionError::Cursor)
        };
        match text.rsplit_once('.') {
            Some((epoch, at)) => Ok(Self {
                session_epoch: Some(epoch.parse()?),
                offset: offset(at)?,
            }),
            None => Ok(Self {
                session_epoch: None,
                offset: offset(text)?,
            }),
        }
    }
}

/// Which writer of a run. Start grants 1, each claim the next; granted by the server only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunEpoch(pub u32);

impl RunEpoch {
    /// The epoch that a start grants.
    pub const FIRST: Self = Self(1);

    /// The epoch that the next claim grants.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a run claimed 2^32 times"))
    }
}

impl fmt::Display for RunEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A writer's own count of what it wrote in one run and epoch: dense, from 1, given by the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first.
    pub const ZERO: Self = Self(0);
    /// The first event of an epoch.
    pub const FIRST: Self = Self(1);

    /// The next one. Saturates: a seq near 2^64 can only be a hostile gap.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_as_text() {
        for text in [
            "1-17.42",
            "0-0.0",
            "4294967295-18446744073709551615.9007199254740991",
            "7",
        ] {
            assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_cursors_are_refused() {
        for text in [
            "",
            ".",
            "1.2",
            "1-2.",
            "1-2.x",
            "1-2.-1",
            "-1",
            "9007199254740992",
            "1-2.3.4",
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
