//! Why the disk refused. Each variant is a different duty for the caller.

/// What a store answers instead of data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A read, write or sync failed. After a failed write or sync the process ends (RULES 35).
    #[error("the disk failed: {0}")]
    Io(String),
    /// A record is not what was written: its checksum differs, it cannot be decoded, or its
    /// neighbours are missing. Never skipped.
    #[error("damaged: {what}")]
    Damaged {
        /// Which record, and how it differs; no payload.
        what: String,
    },
    /// Rows, events or the applied row of one group are not what was written, or are gone. Its log
    /// and vote are whole: the rows are dropped and fetched anew ([`crate::Store::drop_rows`],
    /// RULES 35), and until then the group neither votes, leads nor serves.
    #[error("the rows of group {group} are damaged: {what}")]
    DamagedRows {
        /// The group.
        group: u32,
        /// What was found; no payload.
        what: String,
    },
    /// Log, vote or watermark went backwards or cannot be trusted: this node must not vote, lead
    /// or ack under its id (RULES 31).
    #[error("quarantined: {why}")]
    Quarantine {
        /// What was found.
        why: String,
    },
    /// The disk is too full for something that can wait; nothing was written.
    #[error("the disk is {used_percent} % full")]
    Full {
        /// How full it is.
        used_percent: u64,
    },
    /// The event DB began anew while something was written to it: it is tried again, in the store.
    #[error("the event DB began anew")]
    Anew,
    /// Written by a newer release. Nothing was changed.
    #[error("the data directory has format {found}, this release knows up to {known}")]
    Newer {
        /// The format found.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The directory belongs to another cluster or node.
    #[error("the data directory belongs to {found}, expected {expected}")]
    WrongCluster {
        /// What the caller expected.
        expected: String,
        /// What the directory says.
        found: String,
    },
    /// Another process has the directory open.
    #[error("{path} is in use by another process")]
    Locked {
        /// The directory.
        path: String,
    },
    /// The directory is empty and the caller did not say what to write into it.
    #[error("{path} holds no store")]
    Empty {
        /// The directory.
        path: String,
    },
    /// A purge above what is durably applied: our own mistake. `on_fatal` was called.
    #[error("purge of group {group} up to {upto} is above its bound {bound:?}")]
    AboveBound {
        /// The group.
        group: u32,
        /// The index asked for.
        upto: u64,
        /// The highest index that may go; `None`: nothing is durably applied yet.
        bound: Option<u64>,
    },
    /// A read below what is left of the log: whoever needs that needs a snapshot.
    #[error("the log of group {group} is purged up to {upto}")]
    Purged {
        /// The group.
        group: u32,
        /// The last index that is gone.
        upto: u64,
    },
    /// An append that does not continue its log: our own mistake. Nothing was written.
    #[error("append to group {group} at {found}, expected {expected}")]
    Hole {
        /// The group.
        group: u32,
        /// The index that would continue the log.
        expected: u64,
        /// The index of the record given.
        found: u64,
    },
}

impl StoreError {
    /// Damage that was found among the rows of a group.
    pub(crate) fn of_rows(self, group: u32) -> Self {
        match self {
            Self::Damaged { what } => Self::DamagedRows { group, what },
            other => other,
        }
    }
}

impl From<everwire_proto::storage::StorageError> for StoreError {
    fn from(error: everwire_proto::storage::StorageError) -> Self {
        use everwire_proto::storage::StorageError;
        match error {
            StorageError::Newer { found, known } => Self::Newer {
                found: u32::from(found),
                known: u32::from(known),
            },
            StorageError::Damaged { what } => Self::Damaged { what },
        }
    }
}
