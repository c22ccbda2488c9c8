//! Server-sent events, as model providers stream them: `data:` lines, an empty line ends one.
//! (WHATWG HTML, section 9.2; comments, `event:`, `id:` and `retry:` carry no payload for us.)

use bytes::Bytes;
use everwire_core::limits::EVENT_BYTES_MAX;

/// Most bytes of one event; beyond it the provider is not speaking to us.
const EVENT_MAX: usize = 4 * EVENT_BYTES_MAX;

/// An event has no end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Cuts a byte stream into payloads of events.
#[derive(Default)]
pub(super) struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    /// The event has had a `data:` line.
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
}

impl SseParser {
    /// Takes bytes as they come and gives the payloads that are complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Bytes>, TooLarge> {
        let mut payloads = Vec::new();
        for byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if after_return => {},
                b'\n' | b'\r' => payloads.extend(self.end_line()),
                _ => self.line.push(*byte),
            }
            if self.line.len() + self.data.len() > EVENT_MAX {
                return Err(TooLarge);
            }
        }
        Ok(payloads)
    }

    fn end_line(&mut self) -> Option<Bytes> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then(|| Bytes::from(data));
        }
        if let Some(value) = line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data
                .extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(chunks: &[&str]) -> Vec<String> {
        let mut parser = SseParser::default();
        let payloads = chunks
            .iter()
            .flat_map(|chunk| parser.feed(chunk.as_bytes()).unwrap());
        payloads
            .map(|payload| String::from_utf8(payload.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn events_end_at_an_empty_line_however_the_bytes_are_cut() {
        let stream =
            ": hi\r\nevent: x\ndata: {\"a\":1}\n\ndata:b\ndata: c\r\n\r\ndata\n\nid: 1\n\n";
        let expected = ["{\"a\":1}", "b\nc"];
        assert_eq!(all(&[stream]), expected);
        let bytes: Vec<String> = stream.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        assert_eq!(all(&bytes), expected);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::default();
        let chunk = vec![b'x'; EVENT_MAX + 1];
        assert_eq!(parser.feed(&chunk), Err(TooLarge));
    }
}
