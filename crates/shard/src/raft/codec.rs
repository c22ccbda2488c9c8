//! openraft's values ⇄ what stands on disk: `storage.v1` messages of our own (engine trap 7).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use everwire_proto::{storage, storage_v1 as disk};
use everwire_store::{LogPosition, LogRecord, VoteRecord};
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_std;
use openraft::vote::{RaftLeaderId, RaftVote};
use openraft::{EntryPayload, RaftTypeConfig};

use super::types::{Entry, LogId, Membership, Peer, Proposal, StoredMembership, TypeConfig, Vote};

type LeaderId = leader_id_std::LeaderId<u64, u64>;
type Committed = <<TypeConfig as RaftTypeConfig>::LeaderId as RaftLeaderId>::Committed;

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// The place of an entry. Standard Raft has one leader per term, so an id does not name the
/// node and `node` stays 0.
pub(crate) fn position(id: &LogId) -> LogPosition {
    LogPosition {
        term: id.committed_leader_id().term,
        node: 0,
        index: id.index(),
    }
}

/// The id of the entry at a place.
pub(crate) fn log_id(position: LogPosition) -> LogId {
    LogId::new(Committed::new(position.term), position.index)
}

/// A vote as the store keeps it.
pub(crate) fn vote_record(vote: &Vote) -> VoteRecord {
    VoteRecord {
        term: vote.leader_id().term,
        node: vote.leader_id().voted_for,
        committed: vote.is_committed(),
    }
}

/// A vote from the store.
pub(crate) fn vote(record: VoteRecord) -> Vote {
    Vote::from_leader_id(LeaderId::new(record.term, record.node), record.committed)
}

fn position_message(position: LogPosition) -> disk::LogPosition {
    disk::LogPosition {
        term: position.term,
        node: position.node,
        index: position.index,
    }
}

fn membership_message(membership: &Membership) -> disk::Membership {
    let configs = membership.get_joint_config().iter();
    disk::Membership {
        configs: configs
            .map(|set| disk::NodeSet {
                nodes: set.iter().copied().collect(),
            })
            .collect(),
        members: membership
            .nodes()
            .map(|(node, peer)| disk::Member {
                node: *node,
                addr: peer.addr.clone(),
                peer: peer.peer.clone(),
            })
            .collect(),
    }
}

fn membership_value(message: disk::Membership) -> Result<Membership, io::Error> {
    let configs = message.configs.into_iter();
    let configs: Vec<BTreeSet<u64>> = configs.map(|set| set.nodes.into_iter().collect()).collect();
    let members = message.members.into_iter();
    let members: BTreeMap<u64, Peer> = members
        .map(|member| {
            let peer = Peer {
                addr: member.addr,
                peer: member.peer,
            };
            (member.node, peer)
        })
        .collect();
    Membership::new(configs, members).map_err(|error| damaged(format!("a membership: {error}")))
}

/// A membership as the applied row keeps it; empty before the first.
pub(crate) fn membership_bytes(stored: &StoredMembership) -> Bytes {
    match stored.log_id() {
        Some(_) => storage::encode_membership(&membership_message(stored.membership())),
        None => Bytes::new(),
    }
}

/// A membership from the applied row.
pub(crate) fn membership(
    bytes: &[u8],
    at: Option<LogPosition>,
) -> Result<StoredMembership, io::Error> {
    let Some(at) = at else {
        return Ok(StoredMembership::default());
    };
    let message = storage::decode_membership(bytes).map_err(damaged)?;
    let membership = membership_value(message)?;
    Ok(StoredMembership::new(Some(log_id(at)), membership))
}

/// An entry as the log keeps it. A batch's bytes go in as they are.
pub(crate) fn record(entry: &Entry) -> LogRecord {
    use disk::log_entry::Payload;
    let position = position(&entry.log_id);
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(disk::Blank {}),
        EntryPayload::Normal(Proposal(bytes)) => Payload::Batch(bytes.clone()),
        EntryPayload::Membership(membership) => Payload::Membership(membership_message(membership)),
    };
    let message = disk::LogEntry {
        position: Some(position_message(position)),
        payload: Some(payload),
    };
    LogRecord {
        position,
        bytes: storage::encode_log_entry(&message),
    }
}

/// An entry from the log.
pub(crate) fn entry(record: &LogRecord) -> Result<Entry, io::Error> {
    let entry = entry_from(&record.bytes)?;
    if position(&entry.log_id) != record.position {
        let at = record.position;
        return Err(damaged(format!("the entry under {at} names another place")));
    }
    Ok(entry)
}

/// An entry from its bytes, wherever it is to stand.
pub(crate) fn entry_from(bytes: &Bytes) -> Result<Entry, io::Error> {
    use disk::log_entry::Payload;
    let message = storage::decode_log_entry(bytes).map_err(damaged)?;
    let at = message
        .position
        .ok_or_else(|| damaged("an entry without a place"))?;
    let at = LogPosition {
        term: at.term,
        node: at.node,
        index: at.index,
    };
    let payload = match message.payload {
        Some(Payload::Blank(disk::Blank {})) => EntryPayload::Blank,
        Some(Payload::Batch(bytes)) => EntryPayload::Normal(Proposal(bytes)),
        Some(Payload::Membership(message)) => EntryPayload::Membership(membership_value(message)?),
        None => return Err(damaged(format!("the entry at {at} is empty"))),
    };
    Ok(Entry::new(log_id(at), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition {
            term,
            node: 0,
            index,
        }
    }

    fn peer(addr: &str) -> Peer {
        Peer {
            addr: addr.to_owned(),
            peer: format!("peer-{addr}"),
        }
    }

    #[test]
    fn entries_come_back_as_they_went() {
        let members = BTreeMap::from([(1, peer("a:1")), (2, peer("b:2")), (3, Peer::default())]);
        let joint = vec![BTreeSet::from([1, 2]), BTreeSet::from([2])];
        let membership = Membership::new(joint, members).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal(Bytes::from_static(b"\x01anything"))),
            EntryPayload::Membership(membership),
        ] {
            let before = Entry::new(log_id(at(7, 9)), payload);
            let record = record(&before);
            assert_eq!(record.position, at(7, 9));
            assert_eq!(entry(&record).unwrap(), before);
        }
    }

    #[test]
    fn an_entry_under_another_place_is_refused() {
        let mut moved = record(&Entry::new_blank(log_id(at(1, 5))));
        moved.position.index = 6;
        assert_eq!(
            entry(&moved).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn votes_come_back_as_they_went() {
        for committed in [false, true] {
            let record = VoteRecord {
                term: 3,
                node: 17,
                committed,
            };
            assert_eq!(vote_record(&vote(record)), record);
        }
    }
}
