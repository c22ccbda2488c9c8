//! A network of one's own, whose hosts can be cut off from each other: network namespaces on a
//! bridge, which the test itself can always reach. Needs root and iproute2.
//!
//! A cut is a wrong link-layer address: what one host sends to another goes to nobody, silently
//! and in that one direction, as with a broken switch. No firewall is needed.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use crate::client::random;
use crate::say;

/// A link-layer address that nobody has.
const NOBODY: &str = "02:00:00:00:00:ff";

/// A host of the network.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its network namespace.
    pub netns: String,
    /// Its address.
    pub addr: Ipv4Addr,
    /// Its cable's end at the bridge.
    port: String,
}

/// Some hosts on a bridge. All of it is removed when dropped.
pub struct Network {
    bridge: String,
    hosts: Vec<Host>,
}

impl Network {
    /// So many hosts; `None`, said loudly, where that cannot be had.
    pub fn new(hosts: usize) -> Option<Self> {
        let mark = random() % 0xff_ffff;
        let bridge = format!("ewb{mark:06x}");
        let mut network = Self {
            bridge,
            hosts: Vec::new(),
        };
        if let Err(why) = network.build(mark, hosts) {
            say(&format!("SKIPPED: no network namespaces to be had: {why}"));
            return None;
        }
        Some(network)
    }

    fn build(&mut self, mark: u64, hosts: usize) -> Result<(), String> {
        let [.., second, third] = mark.to_be_bytes();
        let bridge = self.bridge.clone();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        let gateway = format!("{}/24", Ipv4Addr::new(10, second, third, 254));
        ip(&["addr", "add", &gateway, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for number in 1..=hosts {
            let last = u8::try_from(number).map_err(|error| error.to_string())?;
            let host = Host {
                netns: format!("{bridge}-{number}"),
                addr: Ipv4Addr::new(10, second, third, last),
                port: format!("ewv{mark:06x}{number}"),
            };
            let (netns, addr) = (host.netns.clone(), format!("{}/24", host.addr));
            let port = host.port.clone();
            // From here on it is removed again, whatever comes.
            self.hosts.push(host);
            ip(&["netns", "add", &netns])?;
            ip(&[
                "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns,
            ])?;
            ip(&["link", "set", &port, "master", &bridge])?;
            ip(&["link", "set", &port, "up"])?;
            ip(&["-n", &netns, "link", "set", "lo", "up"])?;
            ip(&["-n", &netns, "addr", "add", &addr, "dev", "eth0"])?;
            ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// A host by its number, counted from 0.
    pub fn host(&self, number: usize) -> &Host {
        let host = self.hosts.get(number);
        host.unwrap_or_else(|| panic!("there is no host {number}"))
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        let (netns, to) = (&self.host(from).netns, self.host(to).addr.to_string());
        let neighbour = ["-n", netns, "neigh", "replace", &to, "lladdr", NOBODY];
        let forever = ["nud", "permanent", "dev", "eth0"];
        ip(&[&neighbour[..], &forever].concat()).expect("it could be built");
    }

    /// The same in both directions.
    pub fn cut(&self, one: usize, two: usize) {
        self.cut_one_way(one, two);
        self.cut_one_way(two, one);
    }

    /// Cuts a host off from all others; the test still reaches it.
    pub fn cut_off(&self, host: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.cut(host, other);
        }
    }

    /// Everybody reaches everybody.
    pub fn heal(&self) {
        for host in &self.hosts {
            for other in &self.hosts {
                let addr = other.addr.to_string();
                // One that was not cut has nothing to remove.
                let _ = ip(&["-n", &host.netns, "neigh", "del", &addr, "dev", "eth0"]);
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            // The cable too: the namespace lives on for as long as a killed process takes to go.
            let _ = ip(&["link", "del", &host.port]);
            let _ = ip(&["netns", "del", &host.netns]);
        }
        let _ = ip(&["link", "del", &self.bridge]);
    }
}

/// Runs `ip`; the error is what it said.
fn ip(args: &[&str]) -> Result<(), String> {
    let mut command = Command::new("ip");
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", args.join(" "), said.trim()))
}
