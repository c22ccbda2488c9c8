//! Reads rows and events that nobody asked for, piece by piece, and holds them against their
//! checksums: a byte that changed on the disk is found before somebody needs it.

use std::ops::{ControlFlow, Range};

use crate::disk::{Disk, Reads};
use crate::engine::{Core, apply};
use crate::error::StoreError;
use crate::layout::{self, Family};
use crate::record;
use crate::types::Verified;

impl<D: Disk> Core<D> {
    /// See [`crate::Store::verify`].
    pub(crate) fn verify(
        &self,
        group: u32,
        from: Option<Verified>,
        bytes_max: usize,
    ) -> Result<Option<Verified>, StoreError> {
        self.fatal.check()?;
        if self.flusher.is_installing(group) {
            return Ok(None);
        }
        let slots = self.identity.slots(group);
        let mut next = Ok(None);
        // Frozen reads leave the cache to those who ask.
        self.disk.frozen(&mut |reads| {
            next = piece(reads, group, slots.clone(), from.as_ref(), bytes_max);
        });
        self.read_of(group, next)
    }
}

/// Reads from where the last piece ended; answers where this one did.
fn piece(
    reads: &dyn Reads,
    group: u32,
    slots: Range<u16>,
    from: Option<&Verified>,
    bytes_max: usize,
) -> Result<Option<Verified>, StoreError> {
    if from.is_none() {
        apply::read_applied(reads, group)?;
    }
    let first = from.map_or(0, |from| from.family);
    let left = Family::sharded().into_iter();
    let left = left.filter(|family| family.number() >= first);
    let mut bytes = 0;
    for family in left {
        let mut range = layout::slots_range(slots.clone());
        if let Some(from) = from.filter(|from| from.family == family.number()) {
            range.start.clone_from(&from.next);
        }
        let mut next = None;
        reads.scan(family, &range, &mut |key, value| {
            if bytes >= bytes_max {
                next = Some(key.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            record::unseal("a row", key, value)?;
            bytes += key.len() + value.len();
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(next) = next {
            let family = family.number();
            return Ok(Some(Verified { family, next }));
        }
    }
    Ok(None)
}
