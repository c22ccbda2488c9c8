//! TLS: a node, an edge, commands and sockets that trust one authority and nobody else; nothing
//! off loopback is served in the clear unless somebody said so.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use everwire_testkit::process::{command, folder};
use everwire_testkit::{Http, Lines, Server, lines, tokens};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const ANY: &str = "127.0.0.1:0";

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key of a server on loopback.
    fn sign(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("good names");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        (cert.pem(), key.serialize_pem())
    }
}

/// A folder with an authority, somebody else's authority, keys and tokens.
struct Home {
    folder: TempDir,
    ca: String,
}

impl Home {
    fn new() -> Self {
        let (folder, authority) = (folder(), Authority::new());
        let (cert, key) = authority.sign();
        let (private, public) = everwire_proto::token::Signer::generate();
        let home = Self {
            folder,
            ca: authority.pem,
        };
        home.write("ca.pem", &home.ca);
        home.write("stranger.pem", &Authority::new().pem);
        home.write("cert.pem", &cert);
        home.write("key.pem", &key);
        home.write("auth.key", &private);
        home.write("auth.key.pub", &public);
        home.write("edge.token", &tokens::edge(home.path()));
        home
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a writable folder");
    }

    fn file(&self, name: &str) -> String {
        let path: PathBuf = self.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// `@name` in a command line is a file of this home.
    fn words(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.file(name),
            None => word.to_owned(),
        };
        line.split_whitespace().map(word).collect()
    }

    async fn server(&self, name: &str, line: &str) -> Server {
        let words = self.words(line);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        Server::start(&self.path().join(name), &words).await
    }

    async fn node(&self, tls: &str) -> Server {
        let line = format!("node --data @data --grpc {ANY} --admin {ANY} --auth-key @auth.key.pub");
        self.server("node", &format!("{line} {tls}")).await
    }

    async fn edge(&self, nodes: &str, ca: &str) -> Server {
        let line = format!(
            "edge --http {ANY} --admin {ANY} --nodes {nodes} --node-ca @{ca} --token-file @edge.token \
             --auth-key @auth.key.pub --tls-cert @cert.pem --tls-key @key.pem"
        );
        self.server(&format!("edge-{ca}"), &line).await
    }

    /// A command as a person with all rights.
    async fn run(&self, addr: &str, line: &str) -> Output {
        let words = self.words(line);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let output = command(&words)
            .env("EVERWIRE_ADDR", addr)
            .env("EVERWIRE_TOKEN", tokens::without(self.path(), "ann", &[]))
            .current_dir(self.path())
            .output()
            .await;
        output.expect("the binary runs")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A WebSocket over TLS, by a client that trusts this authority only.
async fn secure(addr: &str, ca: &str) -> std::io::Result<Box<dyn lines::Io>> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM");
    roots.add(ca).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("good defaults")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await?;
    Ok(Box::new(tls))
}

const TLS: &str = "--tls-cert @cert.pem --tls-key @key.pem";

#[tokio::test]
async fn node_edge_commands_and_sockets_meet_over_tls() {
    let home = Home::new();
    let node = home.node(TLS).await;
    let edge = home.edge(&node.grpc, "ca.pem").await;
    let made = home.run(&node.grpc, "session create s --ca @ca.pem").await;
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    // The name in the certificate counts, not only the address.
    let localhost = node.grpc.replace("127.0.0.1", "https://localhost");
    let shown = home.run(&localhost, "session show s --ca @ca.pem").await;
    assert_eq!(shown.status.code(), Some(0), "{}", said(&shown));

    let ann = tokens::user(home.path(), "ann");
    let socket = secure(&edge.http, &home.ca).await.expect("trusted");
    let socket = Lines::over(socket, lines::upgrade(&edge.http)).await;
    let mut tab = socket.expect("the edge upgrades");
    tab.authenticate(&ann).await;
    let attach = json!({"t": "attach", "id": "1", "session": "s"}).to_string();
    assert_eq!(tab.ask("1", &attach).await["answer"], "resumed");

    let http = Http::tls(&edge.http, &home.ca).with_token(&ann);
    let app = json!({"kind": "app", "body": {"name": "hello"}}).to_string();
    let posted = http.post("/v1/sessions/s/events", &[], &app).await;
    assert_eq!(posted.status, 200, "{}", posted.text);
    let events = tab.line_of("events").await;
    assert_eq!(events["events"][0]["body"]["name"], "hello");
    let mut stream = http
        .stream("/v1/sessions/s/events", &[])
        .await
        .expect("a stream");
    let message = stream.next().await.expect("a message");
    assert_eq!(message.json()["body"]["name"], "hello");
    let selftest = format!("selftest --edge https://{} --ca @ca.pem", edge.http);
    let kept = home.run(&node.grpc, &selftest).await;
    assert_eq!(kept.status.code(), Some(0), "{}", said(&kept));
    let tail = home.run(&node.grpc, "tail s --json --ca @ca.pem").await;
    assert!(String::from_utf8_lossy(&tail.stdout).contains("hello"));
}

#[tokio::test]
async fn nobody_else_is_trusted_and_nothing_is_said_in_the_clear() {
    let home = Home::new();
    let node = home.node(TLS).await;
    let edge = home.edge(&node.grpc, "ca.pem").await;
    let lost = home.edge(&node.grpc, "stranger.pem").await;
    let plain = format!("http://{}", node.grpc);
    // An edge that cannot trust its node serves nothing of it, and says so.
    let http = Http::tls(&lost.http, &home.ca).with_token(&tokens::user(home.path(), "ann"));
    let app = json!({"kind": "app", "body": {"name": "hello"}}).to_string();
    let (stranger, clear, good, refused) = tokio::join!(
        home.run(&node.grpc, "session list --ca @stranger.pem"),
        home.run(&plain, "session list"),
        home.run(&node.grpc, "session list --ca @ca.pem"),
        http.post("/v1/sessions/s/events", &[], &app),
    );
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));
    assert_eq!(stranger.status.code(), Some(5), "{}", said(&stranger));
    assert_eq!(clear.status.code(), Some(5), "{}", said(&clear));
    let (status, code) = refused.refusal();
    assert_eq!(status, 503, "{code}");

    let stranger = std::fs::read_to_string(home.file("stranger.pem")).expect("written");
    assert!(secure(&edge.http, &stranger).await.is_err());
    // Bytes that are not TLS get no byte of HTTP back.
    let mut tcp = TcpStream::connect(&edge.http).await.expect("it listens");
    tcp.write_all(b"GET /v1/ws HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("taken");
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    assert!(
        !String::from_utf8_lossy(&answer).contains("HTTP"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn off_loopback_there_is_tls_or_the_word_insecure() {
    let home = Home::new();
    let far = "0.0.0.0:0";
    let node = format!("node --data @data --grpc {far} --admin {ANY} --auth-key @auth.key.pub");
    let edge = format!(
        "edge --http {far} --admin {ANY} --nodes 127.0.0.1:1 --token-file @edge.token --auth-key @auth.key.pub"
    );
    let dev_grpc = format!("dev --data @dev --grpc {far} --http {ANY} --admin {ANY}");
    let dev_http = format!("dev --data @dev --grpc {ANY} --http {far} --admin {ANY}");
    for line in [&node, &edge, &dev_grpc, &dev_http] {
        let refused = home.run(ANY, line).await;
        assert_eq!(refused.status.code(), Some(1), "{line}");
        assert!(refused.stdout.is_empty(), "{line}");
        assert!(said(&refused).contains("insecure"), "{}", said(&refused));
        let server = home.server("log", &format!("{line} --insecure")).await;
        assert_eq!(server.stop().await, Some(0), "{line}");
    }
    for line in [&node, &edge] {
        let server = home.server("log", &format!("{line} {TLS}")).await;
        assert_eq!(server.stop().await, Some(0), "{line}");
    }
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_at_the_start() {
    let home = Home::new();
    home.write("bad.pem", "-----BEGIN CERTIFICATE-----\nAA\n");
    home.write("other.pem", &Authority::new().sign().1);
    let node = format!("node --data @data --grpc {ANY} --admin {ANY} --auth-key @auth.key.pub");
    let edge = format!(
        "edge --http {ANY} --admin {ANY} --nodes 127.0.0.1:1 --token-file @edge.token --auth-key @auth.key.pub"
    );
    for (tls, exit) in [
        ("--tls-cert @cert.pem", 2),
        ("--tls-key @key.pem", 2),
        ("--tls-cert @missing.pem --tls-key @key.pem", 2),
        ("--tls-cert @bad.pem --tls-key @key.pem", 1),
        ("--tls-cert @cert.pem --tls-key @bad.pem", 1),
        ("--tls-cert @cert.pem --tls-key @other.pem", 1),
    ] {
        for line in [&node, &edge] {
            let refused = home.run(ANY, &format!("{line} {tls}")).await;
            assert_eq!(
                refused.status.code(),
                Some(exit),
                "{line} {tls}: {}",
                said(&refused)
            );
            assert!(refused.stdout.is_empty(), "{line} {tls}");
        }
    }
}
