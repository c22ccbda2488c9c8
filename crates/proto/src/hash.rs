//! Hashes by which a reused idempotency key's command is told from another.
//!
//! Comes in: words of `core` that were checked. Goes out: 128 bits that are kept on disk with the
//! key. Never: a hash that changes with a release.

use everwire_core::control::{Cancel, Guard, Signal};
use everwire_core::event::{Body, Draft};
use everwire_core::position::Offset;
use prost::Message;
use xxhash_rust::xxh3::xxh3_128;

use crate::signal::put_signal;
use crate::v1;

/// The hash by which a reused key's body is told from another: XXH3-128 over the draft's
/// deterministic encoding. It is kept on disk, so it never changes.
pub fn body_hash(draft: &Draft) -> u128 {
    xxh3_128(&v1::Draft::from(draft).encode_to_vec())
}

/// The same for a signal that is no stop: over its fields.
pub fn signal_hash(signal: &Signal) -> u128 {
    let mut fields = crate::edge_v1::Signal::default();
    put_signal(&mut fields, signal);
    xxh3_128(&fields.encode_to_vec())
}

/// The same for a stop: over the draft of its event, and what it expects if it expects anything.
pub fn cancel_hash(cancel: &Cancel) -> u128 {
    let signal = Draft::new(Body::SignalCancel {
        target: cancel.target.clone(),
        grace_ms: cancel.grace_ms,
    });
    if cancel.guard == Guard::default() {
        return body_hash(&signal);
    }
    let mut bytes = v1::Draft::from(&signal).encode_to_vec();
    let state = cancel.guard.state.map_or("", |state| state.as_str());
    bytes.extend_from_slice(state.as_bytes());
    bytes.push(0);
    let as_of = cancel.guard.as_of.map_or(u64::MAX, Offset::get);
    bytes.extend_from_slice(&as_of.to_be_bytes());
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use everwire_core::control::Target;

    use super::*;

    #[test]
    fn hashes_are_pinned_for_ever() {
        let stop = Cancel::run("r1".parse().unwrap());
        assert_eq!(cancel_hash(&stop), SIGNAL_R1);
        let expecting = Cancel {
            guard: Guard {
                as_of: Offset::new(7),
                ..Guard::default()
            },
            ..stop
        };
        assert_ne!(cancel_hash(&expecting), SIGNAL_R1);
        let pause = Signal::Pause(Target::Run("r1".parse().unwrap()));
        assert_eq!(signal_hash(&pause), PAUSE_R1);
        let resume = Signal::Resume(Target::Run("r1".parse().unwrap()));
        assert_ne!(signal_hash(&resume), PAUSE_R1);
        let app = Draft::new(Body::App {
            name: "x".into(),
            data: None,
        });
        assert_eq!(body_hash(&app), APP_X);
    }

    /// Of the third rules; checked in the same way as the others.
    const PAUSE_R1: u128 = 0xc106_9420_c66e_f74e_7b72_8ac4_1457_ad5d;
    /// Checked against another implementation of XXH3 (PyPI xxhash).
    const SIGNAL_R1: u128 = 0x6571_91a1_982f_f501_d43c_5f0c_141c_4d03;
    const APP_X: u128 = 0x3328_c697_177e_2ec6_df5a_e2bd_9a15_9cc3;
}
