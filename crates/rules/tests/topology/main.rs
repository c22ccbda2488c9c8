//! The topology: what each change does and refuses, and where plans lead whatever happens.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper's panic fails its test"
)]

mod changes;
mod properties;
mod world;
