//! Wire and disk messages, and the only conversions between them and the words of `core`.
//!
//! Comes in: bytes that nobody has checked. Goes out: values of `core`, or a refusal.
//! Never: policy. What a token *allows* is decided by `core::grant`; here only its signature
//! is checked.

pub mod control;
pub mod event;
pub mod field;
pub mod frame;
pub mod hash;
pub mod internal;
pub mod json;
pub mod refusal;
pub mod signal;
pub mod storage;
pub mod token;
mod words;

/// Generated code; see `tests/generated.rs`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::str_to_string,
    clippy::too_many_lines,
    clippy::cast_possible_truncation,
    reason = "generated"
)]
mod generated {
    /// Package `everwire`.
    pub mod everwire {
        /// Package `everwire.v1`: public.
        pub mod v1 {
            include!("gen/everwire.v1.rs");
        }
        /// Package `everwire.edge.v1`: binary WebSocket frames.
        pub mod edge {
            /// Version 1.
            pub mod v1 {
                include!("gen/everwire.edge.v1.rs");
            }
        }
        /// Package `everwire.internal.v1`: between nodes.
        pub mod internal {
            /// Version 1.
            pub mod v1 {
                include!("gen/everwire.internal.v1.rs");
            }
        }
        /// Package `everwire.storage.v1`: the disk.
        pub mod storage {
            /// Version 1.
            pub mod v1 {
                include!("gen/everwire.storage.v1.rs");
            }
        }
    }
}

pub use generated::everwire::edge::v1 as edge_v1;
pub use generated::everwire::internal::v1 as internal_v1;
pub use generated::everwire::storage::v1 as storage_v1;
pub use generated::everwire::v1;

/// The public package as a file descriptor set, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/everwire.v1.bin");
