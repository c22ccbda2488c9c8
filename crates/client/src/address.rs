//! A node's address, in any spelling.

use std::fmt;
use std::sync::Arc;

use everwire_core::{Code, Refusal};
use http::Uri;

/// A node's address as a URI with scheme and authority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address(Arc<str>);

impl Address {
    /// The URI.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `host:port`, `http://host:port` or `https://host:port`.
pub(crate) fn parse(text: &str, secure: bool) -> Result<Address, Refusal> {
    let bad = |why: &str| Refusal::new(Code::Malformed, format!("the address {text}: {why}"));
    let scheme = if secure { "https" } else { "http" };
    let (given, authority) = text
        .trim()
        .split_once("://")
        .unwrap_or_else(|| (scheme, text.trim()));
    match (given, secure) {
        ("http", false) | ("https", true) => {},
        ("https", false) => return Err(bad("https needs a CA certificate")),
        ("http", true) => return Err(bad("http does without the TLS that was asked for")),
        _ => return Err(bad("the scheme is http or https")),
    }
    let uri = format!("{scheme}://{}", authority.trim_end_matches('/'));
    let parsed: Uri = uri.parse().map_err(|_error| bad("it is not host:port"))?;
    let bare = parsed.path() == "/" && parsed.query().is_none();
    if parsed.host().is_none_or(str::is_empty) || !bare {
        return Err(bad("it is not host:port"));
    }
    Ok(Address(Arc::from(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, secure: bool) -> Result<String, Code> {
        parse(text, secure)
            .map(|address| address.to_string())
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn addresses_are_read_in_any_spelling() {
        for text in [
            "127.0.0.1:7400",
            "http://127.0.0.1:7400",
            " http://127.0.0.1:7400/ ",
        ] {
            assert_eq!(parsed(text, false).as_deref(), Ok("http://127.0.0.1:7400"));
        }
        assert_eq!(
            parsed("[::1]:7400", true).as_deref(),
            Ok("https://[::1]:7400")
        );
        assert_eq!(
            parsed("https://node-1:7400", true).as_deref(),
            Ok("https://node-1:7400")
        );
    }

    #[test]
    fn tls_is_never_taken_away_and_nonsense_is_refused() {
        assert_eq!(parsed("http://node:1", true), Err(Code::Malformed));
        assert_eq!(parsed("https://node:1", false), Err(Code::Malformed));
        for text in ["", "ftp://x:1", "a b", "node:1/path", "http://", ":70"] {
            assert_eq!(parsed(text, false), Err(Code::Malformed), "{text}");
        }
    }
}
