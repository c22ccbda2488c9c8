//! What a key of a session is about. Tags are for ever; a new one takes a free number.

/// `rows`, session_no 0: the slot's counter of session numbers.
pub const COUNTER: u8 = 0x01;
/// `rows`: the session's head.
pub const HEAD: u8 = 0x02;
/// `rows`: `run`.
pub const RUN: u8 = 0x03;
/// `rows`: `run ‖ 00 ‖ run_epoch u32`.
pub const EPOCH: u8 = 0x04;
/// `rows`: `run ‖ 00 ‖ run_epoch u32 ‖ n u8`.
pub const BATCH: u8 = 0x05;
/// `rows`: `message`.
pub const MESSAGE: u8 = 0x06;
/// `rows`: `message ‖ 00 ‖ part`.
pub const PART: u8 = 0x07;
/// `rows`: `participant ‖ 00 ‖ input`.
pub const INPUT: u8 = 0x08;
/// `rows`: `participant ‖ 00 ‖ key`.
pub const KEY: u8 = 0x09;
/// `rows`: `time_ms u64 ‖ participant ‖ 00 ‖ key`.
pub const KEY_AGE: u8 = 0x0a;
/// `rows`: `participant ‖ 00 ‖ input`: a stop of an input that no run answers yet.
pub const TOMBSTONE: u8 = 0x0b;
/// `rows`: `run ‖ 00 ‖ step`.
pub const STEP: u8 = 0x0c;
/// `rows`: `approval`.
pub const APPROVAL: u8 = 0x0d;
/// `index`: `run`.
pub const LIVE_RUN: u8 = 0x20;
/// `index`: `due_ms u64 ‖ kind u8` ([`TimerKind::number`](everwire_core::row::TimerKind)).
pub const TIMER: u8 = 0x21;
/// `events`: `offset u64`.
pub const EVENT: u8 = 0x40;
