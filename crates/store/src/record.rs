//! The header in front of every value in both databases.
//!
//! ```text
//! byte 0      format of the record: 1
//! bytes 1..5  CRC-32C, u32 BE, over  format ‖ key ‖ payload
//! bytes 5..   payload; its own first byte is the format of the message inside (`proto::storage`)
//! ```
//!
//! The key is part of the sum, so that a record which turns up under another key is found too.
//! Checked on every read, when a snapshot is read, and when one is installed.

use crate::error::StoreError;

/// The record format that this release writes, and the newest that it reads.
pub const FORMAT: u8 = 1;
/// Bytes in front of the payload.
pub const HEADER_BYTES: usize = 5;

fn sum(format: u8, key: &[u8], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&[format]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, key), payload)
}

/// The value to store under `key`.
pub fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + payload.len());
    value.push(FORMAT);
    value.extend_from_slice(&sum(FORMAT, key, payload).to_be_bytes());
    value.extend_from_slice(payload);
    value
}

/// The payload of what was stored under `key`, if it is what was stored. `what` names the record
/// in the error.
pub fn unseal<'a>(what: &str, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let damaged = |how: &str| {
        let what = format!("{what} under key {}: {how}", hex(key));
        Err(StoreError::Damaged { what })
    };
    let Some((header, payload)) = value.split_first_chunk::<HEADER_BYTES>() else {
        return damaged("shorter than its header");
    };
    let [format, crc @ ..] = *header;
    if format > FORMAT {
        return Err(StoreError::Newer {
            found: u32::from(format),
            known: u32::from(FORMAT),
        });
    }
    if format != FORMAT || u32::from_be_bytes(crc) != sum(format, key, payload) {
        return damaged("the checksum differs");
    }
    Ok(payload)
}

/// Keys in errors: names may stand in them, so only the part before the names is shown.
fn hex(key: &[u8]) -> String {
    let shown: String = key
        .iter()
        .take(12)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let more = if key.len() > 12 { "…" } else { "" };
    format!("{shown}{more}")
}
