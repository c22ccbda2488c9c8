//! Three nodes and two edges, or more, as real processes under load, and whatever may happen to them: by
//! name, one file a theme. Every event is checked each time: what was acked is on every replica
//! with the same bytes, offsets are dense, nothing stands twice, and each reader was given exactly
//! that.
//!
//! Safety is asserted always. Times are printed always, and asserted where the machine was quiet.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

mod any_node;
mod behind;
mod cuts;
mod damaged_rows;
mod disk_full;
mod formation;
mod frozen;
mod fsync;
mod handover;
mod kill;
mod leases;
mod regressed;
mod replace;
mod rolling_restart;
mod sigstop;
mod stop_race;
mod streams;
mod times;
mod versions;
mod waiting;
mod watched;
