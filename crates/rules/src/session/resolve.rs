//! Where a reader may start: one pure table, evaluated top down.

use everwire_core::{Cursor, Offset, SessionEpoch};

/// A session as a replica may serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Its history.
    pub session_epoch: SessionEpoch,
    /// Events up to here are gone.
    pub trimmed: Offset,
    /// The last offset that this replica has applied.
    pub applied_tail: Offset,
    /// The last offset that the leader is known to have; counts as at least `applied_tail`.
    pub leader_tail: Offset,
}

/// Where a reader may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is no such session.
    NotFound,
    /// The cursor cannot be resumed; the reader starts anew at `earliest`.
    Gone {
        /// The history that the session has now.
        session_epoch: SessionEpoch,
        /// The first offset that can be read.
        earliest: Offset,
        /// The last committed offset.
        tail: Offset,
        /// The cursor lies above the leader's own tail: a foreign cursor or a lost event.
        /// Whoever serves logs it as an error.
        ahead: bool,
    },
    /// This replica has not applied the cursor's event yet: wait, or ask another.
    Wait,
    /// Events follow from `from`.
    Resumed {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// The first offset that follows.
        from: Offset,
        /// The last committed offset.
        tail: Offset,
    },
}

/// Answers an attach in raw form.
pub fn resolve(session: Option<&Readable>, cursor: Option<Cursor>) -> Answer {
    let Some(session) = session else {
        return Answer::NotFound;
    };
    let session_epoch = session.session_epoch;
    let earliest = session.trimmed.next();
    let tail = session.leader_tail.max(session.applied_tail);
    let gone = |ahead| Answer::Gone {
        session_epoch,
        earliest,
        tail,
        ahead,
    };
    let resumed = |from| Answer::Resumed {
        session_epoch,
        from,
        tail,
    };
    let Some(cursor) = cursor else {
        return resumed(earliest);
    };
    if cursor
        .session_epoch
        .is_some_and(|epoch| epoch != session_epoch)
    {
        return gone(false);
    }
    if cursor.offset < session.trimmed {
        return gone(false);
    }
    if cursor.offset > tail {
        return gone(true);
    }
    if cursor.offset > session.applied_tail {
        return Answer::Wait;
    }
    resumed(cursor.offset.next())
}
