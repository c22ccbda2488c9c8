//! One storage node of a cluster: its place, its data, and the process, when there is one.

use std::net::IpAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::text;
use crate::network::Host;
use crate::process::{Server, Starting, command, fixed_addr};

/// What nodes log. What openraft says of each election of each group is a load of its own.
const LOG_LEVEL: (&str, &str) = ("EVERWIRE_LOG_LEVEL", "info,everwire=debug,openraft=error");

/// A node, running or not. Its addresses and its data stay.
pub struct Node {
    /// `n0`, `n1`, …: the order in which the cluster forms.
    pub name: String,
    /// Where it serves gRPC.
    pub grpc: String,
    /// Where other nodes reach it.
    pub peer: String,
    /// Health and metrics.
    pub admin: String,
    /// The data directory.
    pub data: PathBuf,
    /// Where its log goes.
    pub folder: PathBuf,
    /// More flags, from the next start on.
    pub flags: Vec<String>,
    /// Environment, from the next start on.
    pub env: Vec<(String, String)>,
    /// Another program that runs the node as its last arguments: a tracer.
    pub wrapper: Vec<String>,
    pub(super) auth_key: PathBuf,
    pub(super) seeds: Vec<String>,
    pub(super) expect: usize,
    netns: Option<String>,
    server: Option<Server>,
    paused: bool,
}

impl Node {
    pub(super) fn new(number: usize, data: PathBuf, folder: PathBuf) -> Self {
        Self {
            name: format!("n{number}"),
            grpc: String::new(),
            peer: String::new(),
            admin: String::new(),
            data,
            folder,
            flags: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            auth_key: PathBuf::new(),
            seeds: Vec::new(),
            expect: 1,
            netns: None,
            server: None,
            paused: false,
        }
    }

    pub(super) fn on_loopback(&mut self) {
        self.grpc = fixed_addr();
        self.peer = fixed_addr();
        self.admin = fixed_addr();
    }

    pub(super) fn live_at(&mut self, host: &Host) {
        let at = |port: u16| std::net::SocketAddr::new(IpAddr::V4(host.addr), port).to_string();
        (self.grpc, self.peer, self.admin) = (at(7400), at(7401), at(7402));
        self.netns = Some(host.netns.clone());
        self.flags.push("--insecure".to_owned());
    }

    /// Whether there is a process, paused or not.
    pub fn runs(&self) -> bool {
        self.server.is_some()
    }

    /// Whether there is a process that does something.
    pub fn acts(&self) -> bool {
        self.runs() && !self.paused
    }

    /// The process.
    pub fn server(&self) -> &Server {
        let server = self.server.as_ref();
        server.unwrap_or_else(|| panic!("{} is down", self.name))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.server().signal(signal);
    }

    pub(super) fn pause(&mut self) {
        self.signal(Signal::SIGSTOP);
        self.paused = true;
    }

    pub(super) fn resume(&mut self) {
        self.signal(Signal::SIGCONT);
        self.paused = false;
    }

    /// The id of its process.
    pub fn pid(&self) -> Pid {
        let server = self.server.as_ref();
        server
            .unwrap_or_else(|| panic!("{} is down", self.name))
            .pid()
    }

    /// The process, to end it.
    pub(super) fn take(&mut self) -> Server {
        self.paused = false;
        let server = self.server.take();
        server.unwrap_or_else(|| panic!("{} is down", self.name))
    }

    pub(super) fn drop_process(&mut self) {
        self.server = None;
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) {
        let server = self.starting().ready().await;
        self.server = Some(server);
    }

    /// Whether its process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.server.as_mut().is_some_and(Server::has_ended)
    }

    /// Starts it if it is down or has ended by itself, again and again until it is ready: what
    /// supervises a process does the same.
    pub async fn supervise(&mut self) {
        if self.has_ended() {
            self.server = None;
        }
        while self.server.is_none() {
            self.server = self.starting().ready_unless_ended().await;
        }
    }

    /// Takes over a process of [`Node::starting`] that has become ready.
    pub fn started(&mut self, server: Server) {
        assert!(!self.runs(), "{} runs already", self.name);
        self.server = Some(server);
    }

    /// Starts it, and leaves to the caller what comes of that.
    pub fn starting(&self) -> Starting {
        assert!(!self.runs(), "{} runs already", self.name);
        let args = self.args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut command = command(&args);
        let mut before = self.wrapper.clone();
        if let Some(netns) = &self.netns {
            before.extend(["ip", "netns", "exec", netns].map(str::to_owned));
        }
        if !before.is_empty() {
            let binary = command.as_std().get_program().to_owned();
            let (program, rest) = before.split_first().expect("it is not empty");
            command = crate::process::clean(program);
            command.args(rest).arg(binary).args(&args);
        }
        let env = self.env.iter();
        let env = env.map(|(key, value)| (key.as_str(), value.as_str()));
        let env: Vec<_> = [LOG_LEVEL].into_iter().chain(env).collect();
        Starting::spawn_as(command, &self.folder, &env)
    }

    fn args(&self) -> Vec<String> {
        let mut args = vec![
            "node",
            "--data",
            text(&self.data),
            "--grpc",
            &self.grpc,
            "--admin",
            &self.admin,
            "--auth-key",
            text(&self.auth_key),
        ];
        let (seeds, expect) = (self.seeds.join(","), self.expect.to_string());
        if self.expect > 1 {
            args.extend(["--name", &self.name, "--peer", &self.peer]);
            args.extend(["--seeds", &seeds, "--bootstrap-expect", &expect]);
        }
        let args = args.into_iter().map(str::to_owned);
        args.chain(self.flags.iter().cloned()).collect()
    }

    /// Everything that it logged so far, over all of its lives.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }
}
