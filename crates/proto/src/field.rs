//! Checks of single fields from outside: a name, an offset, a seq.
//!
//! Comes in: a field's name and its unchecked value. Goes out: a word of `core`, or MALFORMED
//! that names the field. Never: the value itself in a message.

use std::fmt::Display;
use std::str::FromStr;

use everwire_core::clock::Timestamp;
use everwire_core::limits::JSON_DEPTH_MAX;
use everwire_core::position::{Offset, RunEpoch, Seq, SessionEpoch};
use everwire_core::{Code, Refusal};
use serde::de::IgnoredAny;

/// The last millisecond of the year 9999: what RFC 3339 can write.
pub const TIME_MS_MAX: u64 = 253_402_300_799_999;

/// The refusal of a field.
pub fn malformed(field: &str, what: impl Display) -> Refusal {
    Refusal::new(Code::Malformed, format!("{field}: {what}"))
}

/// A required name: [`everwire_core::RunId`], [`everwire_core::SessionName`] and the like.
pub fn name<T>(field: &str, text: &str) -> Result<T, Refusal>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error| malformed(field, error))
}

/// A name that may be absent: the empty string.
pub fn optional_name<T>(field: &str, text: &str) -> Result<Option<T>, Refusal>
where
    T: FromStr,
    T::Err: Display,
{
    if text.is_empty() {
        return Ok(None);
    }
    name(field, text).map(Some)
}

/// An offset: at most 2^53 - 1.
pub fn offset(field: &str, number: u64) -> Result<Offset, Refusal> {
    Offset::new(number).ok_or_else(|| malformed(field, "an offset is at most 2^53 - 1"))
}

/// A number that JSON holds exactly: at most 2^53 - 1.
pub fn number(field: &str, number: u64) -> Result<u64, Refusal> {
    if number > Offset::MAX.get() {
        return Err(malformed(field, "a number is at most 2^53 - 1"));
    }
    Ok(number)
}

/// A seq: 1 to 2^53 - 1.
pub fn seq(field: &str, number: u64) -> Result<Seq, Refusal> {
    if !(1..=Offset::MAX.get()).contains(&number) {
        return Err(malformed(field, "a seq is 1 to 2^53 - 1"));
    }
    Ok(Seq(number))
}

/// A run epoch: 1 and above.
pub fn run_epoch(field: &str, number: u32) -> Result<RunEpoch, Refusal> {
    if number == 0 {
        return Err(malformed(field, "a run_epoch is at least 1"));
    }
    Ok(RunEpoch(number))
}

/// A session epoch that may be absent: the empty string.
pub fn session_epoch(field: &str, text: &str) -> Result<Option<SessionEpoch>, Refusal> {
    optional_name(field, text)
}

/// A time in milliseconds since 1970, up to the year 9999.
pub fn time(field: &str, ms: u64) -> Result<Timestamp, Refusal> {
    if ms > TIME_MS_MAX {
        return Err(malformed(field, "a time lies before the year 10000"));
    }
    Ok(Timestamp(ms))
}

/// One JSON value, nested at most [`JSON_DEPTH_MAX`] deep. It is only looked at, never changed.
pub fn json(field: &str, text: &str) -> Result<(), Refusal> {
    // The message of serde_json may quote the text, so it is dropped.
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Err(malformed(field, "is not one JSON value"));
    }
    if json_depth(text) > JSON_DEPTH_MAX {
        let what = format!("is nested more than {JSON_DEPTH_MAX} deep");
        return Err(malformed(field, what));
    }
    Ok(())
}

/// How deep valid JSON is nested. Not recursive, unlike most readers of what we pass on.
fn json_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            },
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {},
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_value_of_bounded_depth() {
        for good in ["null", " 1 ", "[{\"a\":\"\\\"[[[\"}]", "\"\\\\\"", "1e999"] {
            assert_eq!(json("data", good), Ok(()), "{good}");
        }
        for bad in ["", "1 2", "{", "{'a':1}", "nul", "\"a"] {
            assert_eq!(
                json("data", bad).unwrap_err().code,
                Code::Malformed,
                "{bad}"
            );
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(json("data", &nested(JSON_DEPTH_MAX)), Ok(()));
        assert!(json("data", &nested(JSON_DEPTH_MAX + 1)).is_err());
        assert!(json("data", &nested(100_000)).is_err());
    }

    #[test]
    fn a_refused_field_is_named_and_its_value_is_not_told() {
        let refusal = name::<everwire_core::RunId>("run", "sec ret").unwrap_err();
        assert_eq!(refusal.code, Code::Malformed);
        assert!(refusal.message.starts_with("run: "), "{refusal}");
        assert!(!refusal.message.contains("sec ret"), "{refusal}");
    }

    #[test]
    fn numbers_keep_their_bounds() {
        assert!(offset("from", 1 << 53).is_err());
        assert_eq!(offset("from", 0), Ok(Offset::ZERO));
        assert!(seq("first_seq", 0).is_err());
        assert!(seq("first_seq", 1 << 53).is_err());
        assert!(run_epoch("run_epoch", 0).is_err());
        assert!(time("time", TIME_MS_MAX + 1).is_err());
        assert_eq!(session_epoch("session_epoch", ""), Ok(None));
        assert!(session_epoch("session_epoch", "17").is_err());
    }
}
