//! Recovery: what an open checks before anybody may vote, lead or read.
//!
//! Comes in: a disk whose databases opened, and its watermark. Goes out: an engine, or a reason
//! why there is none. In this order:
//!
//! 1. `meta/batch` ≥ the watermark's batch, or the log lost what was acked: quarantine.
//! 2. Groups with an install marker: rows dropped, flushed, marker cleared.
//! 3. What each group had durably applied; a group of which nobody can tell is damaged, and the
//!    others open.
//! 4. Each group's log: its ends, no hole behind its purge point, and from durably applied on
//!    every record whole and in its place; else quarantine. Older records are checked when read:
//!    they are applied already, and there may be gigabytes of them.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::disk::{Batch, Disk};
use crate::engine::anew::Anew;
use crate::engine::flush::{Flusher, Positions, applied_positions};
use crate::engine::log::{self, Group, Groups};
use crate::engine::mark::Mark;
use crate::engine::peers::Peers;
use crate::engine::queue::Queue;
use crate::engine::room::Room;
use crate::engine::space::Gauge;
use crate::engine::weights::Weights;
use crate::engine::{Core, snapshot, writer};
use crate::error::StoreError;
use crate::layout::{self, LogFamily, LogKey};
use crate::meters::Counts;
use crate::record;
use crate::types::{Identity, LogPosition, OpenOptions};
use crate::watermark::Watermark;

use super::fatal::Fatal;

/// Recovers an engine. `driven`: its queue is driven by its callers.
pub(crate) fn open<D: Disk>(
    disk: D,
    identity: Identity,
    watermark: Watermark,
    options: &OpenOptions,
    driven: bool,
) -> Result<Arc<Core<D>>, StoreError> {
    let mut batch = last_batch(&disk)?;
    if batch < watermark.batch() {
        return Err(quarantine(format!(
            "the log ends at batch {batch}, but batch {} was synced: it lost what it acked",
            watermark.batch()
        )));
    }
    let installing = marked(&disk, true)?;
    if !installing.is_empty() {
        batch += 1;
        end_installs(&disk, &identity, &installing, batch)?;
    }
    let peers = Peers::load(&disk).map_err(distrust)?;
    let mut found = applied_positions(&disk, &identity)?;
    let groups = Groups::default();
    let mut purged = marked(&disk, false)?;
    for group in groups_with_entries(&disk)? {
        let purged = purged.remove(&group).flatten();
        let applied = found.applied.get(&group).copied();
        rootless(&mut found, group, purged);
        let log = recover(&disk, group, purged, applied)?;
        groups.put(group, log);
    }
    for (group, purged) in purged {
        rootless(&mut found, group, purged);
        let first = purged.map_or(0, |purged| purged.index + 1);
        groups.put(group, Group::new(purged, None, first));
    }
    for (group, position) in &found.applied {
        log::lock(&groups.get(*group)).raise_bound(position.index);
    }
    let core = Arc::new(Core {
        disk,
        identity,
        fatal: Fatal::new(Arc::clone(&options.on_fatal)),
        groups,
        tail_bytes: options.tail_bytes,
        queue: Queue::default(),
        mark: Mark::new(watermark, batch),
        flusher: Flusher::new(options.flush_bytes, options.flush_every, found),
        peers,
        gauge: Gauge::new(options.refuse_percent),
        room: Room::default(),
        anew: Anew::default(),
        counts: Counts::default(),
        clock: options.clock.clone(),
        spools: AtomicU64::new(0),
        driven,
        open: Arc::default(),
    });
    core.look();
    core.trim_ballast();
    Ok(core)
}

/// A group that has applied nothing although its log was purged lost its rows: an install was cut
/// short, or the event DB is gone. Its log cannot bring them back.
fn rootless(found: &mut Positions, group: u32, purged: Option<LogPosition>) {
    if let Some(purged) = purged
        && !found.applied.contains_key(&group)
    {
        let what = format!("nothing is applied, but the log is purged up to {purged}");
        let damage = StoreError::DamagedRows { group, what };
        tracing::error!(group, %damage, "the rows of a group must be fetched anew");
        found.damaged.entry(group).or_insert(damage);
    }
}

fn quarantine(why: String) -> StoreError {
    StoreError::Quarantine { why }
}

/// Damage in the log while it is opened means quarantine.
fn distrust(error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged { what } => quarantine(what),
        other => other,
    }
}

fn last_batch(disk: &impl Disk) -> Result<u64, StoreError> {
    let key = LogKey::Batch.encode();
    let value = disk.log_get(LogFamily::Meta, &key).map_err(distrust)?;
    let Some(value) = value else {
        return Ok(0);
    };
    let number = record::unseal("the batch number", &key, &value).map_err(distrust)?;
    match number.first_chunk::<8>() {
        Some(number) => Ok(u64::from_be_bytes(*number)),
        None => Err(quarantine("the batch number is too short".into())),
    }
}

/// Groups with an install marker, or with a purge point and which.
fn marked(
    disk: &impl Disk,
    installing: bool,
) -> Result<BTreeMap<u32, Option<LogPosition>>, StoreError> {
    let mut found = BTreeMap::new();
    let range = layout::meta_range(installing);
    disk.log_scan(LogFamily::Meta, &range, &mut |key, value| {
        match LogKey::decode(LogFamily::Meta, key)? {
            LogKey::Purged(group) => {
                found.insert(group, Some(writer::open_position(key, value)?));
            },
            LogKey::Installing(group) => {
                record::unseal("an install marker", key, value)?;
                found.insert(group, None);
            },
            LogKey::Batch | LogKey::Entry { .. } | LogKey::Peer(_) => {},
        }
        Ok(ControlFlow::Continue(()))
    })
    .map_err(distrust)?;
    Ok(found)
}

fn end_installs(
    disk: &impl Disk,
    identity: &Identity,
    installing: &BTreeMap<u32, Option<LogPosition>>,
    number: u64,
) -> Result<(), StoreError> {
    let mut clear = disk.log_batch();
    for group in installing.keys() {
        tracing::warn!(group, "an install was cut short: its rows are dropped");
        let slots = identity.slots(*group);
        snapshot::drop_group(disk, slots, *group)?;
        clear.delete(LogFamily::Meta, &LogKey::Installing(*group).encode());
    }
    disk.event_flush()?;
    let key = LogKey::Batch.encode();
    let value = record::seal(&key, &number.to_be_bytes());
    clear.put(LogFamily::Meta, &key, &value);
    disk.log_write(clear)
}

fn groups_with_entries(disk: &impl Disk) -> Result<Vec<u32>, StoreError> {
    let mut groups = Vec::new();
    let mut from = Some(0);
    while let Some(next) = from {
        let mut found = None;
        disk.log_scan(LogFamily::Log, &layout::log_from(next), &mut |key, _| {
            found = Some(LogKey::decode(LogFamily::Log, key)?);
            Ok(ControlFlow::Break(()))
        })
        .map_err(distrust)?;
        from = match found {
            Some(LogKey::Entry { group, .. }) => {
                groups.push(group);
                group.checked_add(1)
            },
            _ => None,
        };
    }
    Ok(groups)
}

/// One group's log as it is found on disk.
fn recover(
    disk: &impl Disk,
    group: u32,
    purged: Option<LogPosition>,
    applied: Option<LogPosition>,
) -> Result<Group, StoreError> {
    let floor = purged.map_or(0, |purged| purged.index + 1);
    let all = layout::log_range(group, floor..u64::MAX);
    let mut first = None;
    disk.log_scan(LogFamily::Log, &all, &mut |key, _| {
        first = Some(LogKey::decode(LogFamily::Log, key)?);
        Ok(ControlFlow::Break(()))
    })
    .map_err(distrust)?;
    let (Some(LogKey::Entry { index: first, .. }), Some((key, value))) = (
        first,
        disk.log_last(LogFamily::Log, &all).map_err(distrust)?,
    ) else {
        return Ok(Group::new(purged, None, floor));
    };
    if purged.is_some() && first != floor {
        return Err(quarantine(format!(
            "the log of group {group} begins at {first}, but is purged up to {floor} only"
        )));
    }
    let last = log::open_entry(group, &key, &value).map_err(distrust)?;
    let from = applied
        .map_or(first, |applied| applied.index + 1)
        .max(first);
    let mut log = Group::new(purged, Some(last.position), first);
    // What is not read here is weighed by the disk.
    let unread = layout::log_range(group, first..from);
    let bytes = disk.log_size(LogFamily::Log, &unread);
    log.weights
        .add_many(first, from.min(last.position.index + 1), bytes);
    let rest = from..last.position.index + 1;
    verify(disk, group, rest, &mut log.weights).map_err(distrust)?;
    Ok(log)
}

/// Reads all of `indexes`: each must be there and whole.
fn verify(
    disk: &impl Disk,
    group: u32,
    indexes: Range<u64>,
    weights: &mut Weights,
) -> Result<(), StoreError> {
    let mut next = indexes.start;
    let range = layout::log_range(group, indexes.clone());
    if range.start >= range.end {
        return Ok(());
    }
    disk.log_scan(LogFamily::Log, &range, &mut |key, value| {
        let record = log::open_entry(group, key, value)?;
        if record.position.index != next {
            return Ok(ControlFlow::Break(()));
        }
        weights.add(next, record.bytes.len());
        next += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    if next < indexes.end {
        return Err(quarantine(format!(
            "entry {next} of group {group} is missing"
        )));
    }
    Ok(())
}
