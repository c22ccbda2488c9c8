//! Whose directory it is: the file IDENTITY, and the first checks of every open.
//!
//! IDENTITY is one record (see `record`) sealed under the key `IDENTITY`; its payload is a
//! `storage.v1.Identity`. It is written once, after a fresh watermark and before the databases:
//! so a directory that ever acked anything has all three, and one that lacks the first or second
//! lost them.

use everwire_core::ids::NodeId;
use everwire_proto::{storage, storage_v1};

use crate::error::StoreError;
use crate::record;
use crate::types::{Identity, OpenOptions};
use crate::watermark::{Slots, Watermark};

/// The format of the whole directory that this release writes, and the newest that it reads.
pub(crate) const DIRECTORY_FORMAT: u32 = 1;
const KEY: &[u8] = b"IDENTITY";

/// The part of a directory that stands outside the databases.
pub(crate) trait Home: Slots {
    /// Its path, for messages.
    fn path(&self) -> String;
    /// Reads IDENTITY.
    fn read_identity(&self) -> Result<Option<Vec<u8>>, StoreError>;
    /// Writes IDENTITY, durably and whole or not at all.
    fn write_identity(&self, bytes: &[u8]) -> Result<(), StoreError>;
    /// Whether a log database was ever made here.
    fn has_log(&self) -> Result<bool, StoreError>;
}

/// Reads and checks, or writes into an empty directory, identity and watermark.
/// The databases must not be opened before this says so.
pub(crate) fn settle(
    home: &dyn Home,
    options: &OpenOptions,
) -> Result<(Identity, Watermark), StoreError> {
    let Some(bytes) = home.read_identity()? else {
        return create(home, options);
    };
    let identity = decode(&bytes).map_err(|error| match error {
        StoreError::Damaged { what } => StoreError::Quarantine { why: what },
        other => other,
    })?;
    check(&identity, options)?;
    let Some(watermark) = Watermark::load(home)? else {
        return Err(StoreError::Quarantine {
            why: "the file WATERMARK is missing".into(),
        });
    };
    watermark.check_owner(&identity)?;
    Ok((identity, watermark))
}

fn create(home: &dyn Home, options: &OpenOptions) -> Result<(Identity, Watermark), StoreError> {
    let lost = match Watermark::load(home)? {
        Some(watermark) => !watermark.is_pristine(),
        None => home.has_log()?,
    };
    if lost {
        return Err(StoreError::Quarantine {
            why: "the file IDENTITY is missing".into(),
        });
    }
    let Some(identity) = options.create.clone() else {
        return Err(StoreError::Empty { path: home.path() });
    };
    check(&identity, options)?;
    let mut watermark = Watermark::fresh(&identity);
    watermark.save(home)?;
    home.write_identity(&encode(&identity, DIRECTORY_FORMAT))?;
    Ok((identity, watermark))
}

fn check(identity: &Identity, options: &OpenOptions) -> Result<(), StoreError> {
    let wrong = |what: &str, expected: String, found: String| {
        Err(StoreError::WrongCluster {
            expected: format!("{what} {expected}"),
            found: format!("{what} {found}"),
        })
    };
    match (&options.cluster, options.node) {
        (Some(cluster), _) if *cluster != identity.cluster => {
            wrong("cluster", cluster.clone(), identity.cluster.clone())
        },
        (_, Some(node)) if node != identity.node => {
            wrong("node", node.to_string(), identity.node.to_string())
        },
        _ => Ok(()),
    }
}

/// The bytes of IDENTITY.
pub(crate) fn encode(identity: &Identity, format_version: u32) -> Vec<u8> {
    let message = storage_v1::Identity {
        format_version,
        cluster: identity.cluster.clone(),
        node: identity.node.0,
        timeline: identity.timeline,
        shards: identity.shards,
    };
    record::seal(KEY, &storage::encode_identity(&message))
}

/// Reads the bytes of IDENTITY.
pub(crate) fn decode(bytes: &[u8]) -> Result<Identity, StoreError> {
    let payload = record::unseal("the file IDENTITY", KEY, bytes)?;
    let message = storage::decode_identity(payload).map_err(StoreError::from)?;
    if message.format_version > DIRECTORY_FORMAT {
        return Err(StoreError::Newer {
            found: message.format_version,
            known: DIRECTORY_FORMAT,
        });
    }
    Ok(Identity {
        cluster: message.cluster,
        node: NodeId(message.node),
        timeline: message.timeline,
        shards: message.shards,
    })
}
