//! Which browser pages may talk to this edge: none, unless they are listed.
//!
//! A browser names the page's origin and cannot be made to lie about it; other programs name
//! none, and need none.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The pages that may come.
#[derive(Debug)]
pub(crate) struct Origins {
    listed: HashSet<String>,
    loopback: bool,
}

impl Origins {
    /// The listed ones, and with `loopback` pages of this machine.
    pub(crate) fn new(listed: &[String], loopback: bool) -> Self {
        let plain = |origin: &String| origin.trim_end_matches('/').to_ascii_lowercase();
        Self {
            listed: listed.iter().map(plain).collect(),
            loopback,
        }
    }

    /// Whether a page of this origin may come.
    pub(crate) fn admit(&self, origin: &str) -> bool {
        self.listed.contains(&origin.to_ascii_lowercase()) || (self.loopback && is_loopback(origin))
    }
}

/// `http(s)://` and a loopback host, with or without a port, and nothing else.
fn is_loopback(origin: &str) -> bool {
    let scheme = ["http://", "https://"];
    let Some(authority) = scheme.iter().find_map(|scheme| origin.strip_prefix(scheme)) else {
        return false;
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => (host, port),
            None => return false,
        },
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            authority.split_at(end)
        },
    };
    let good_port = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    let good_host = if authority.starts_with('[') {
        host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback())
    } else {
        host == "localhost" || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    };
    good_port && good_host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_denied_unless_listed() {
        let origins = Origins::new(&["https://App.example.com/".to_owned()], false);
        assert!(origins.admit("https://app.example.com"));
        for other in [
            "https://app.example.com:8443",
            "http://app.example.com",
            "https://app.example.com.evil.com",
            "null",
            "",
            "http://localhost:8080",
        ] {
            assert!(!origins.admit(other), "{other}");
        }
    }

    #[test]
    fn loopback_pages_are_this_machine_only() {
        let origins = Origins::new(&[], true);
        for good in [
            "http://localhost",
            "http://localhost:8080",
            "https://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:3000",
        ] {
            assert!(origins.admit(good), "{good}");
        }
        for bad in [
            "http://localhost.evil.com",
            "http://127.0.0.1.evil.com",
            "http://localhost:80@evil.com",
            "http://localhost:99999",
            "http://[::1",
            "http://[::1]x",
            "http://evil.com#localhost",
            "ftp://localhost",
            "http://10.0.0.1",
            "null",
        ] {
            assert!(!origins.admit(bad), "{bad}");
        }
    }
}
