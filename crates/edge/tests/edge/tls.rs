//! TLS towards clients, and the refusal to do without it off loopback.

use std::sync::Arc;

use everwire_edge::{Edge, EdgeConfig, EdgeError, EdgeTls};
use everwire_proto::frame::Subprotocol;
use everwire_proto::token::Verifier;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::nodes::{Counting, Handle, Nodes, TestClock};
use crate::support::{Bed, Client, SECRET};

fn config(http: &str) -> EdgeConfig {
    EdgeConfig::new(
        http.parse().unwrap(),
        Vec::new(),
        String::new(),
        Verifier::new(SECRET).unwrap(),
        TestClock::new(),
        Arc::new(Counting::default()),
    )
}

#[tokio::test]
async fn a_socket_over_tls_is_a_socket() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let tls = EdgeTls {
        cert_pem: made.cert.pem().into_bytes(),
        key_pem: made.signing_key.serialize_pem().into_bytes(),
    };
    let bed = Bed::with(Nodes::new(), |config| config.tls = Some(tls));
    bed.nodes.make("s");
    bed.nodes.append_many("s", 3_000);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(trust))
        .connect(name, tcp)
        .await
        .unwrap();
    let mut client = Client::over(stream, Subprotocol::Json).await;
    client.auth(&bed.token()).await;
    let mut reader = client.resume("s", None).await;
    client.read_to(&mut reader, 3_000).await;
    drop(client);
    bed.until("connections", 0).await;
    // In the clear nobody gets anywhere.
    let mut plain = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
    plain
        .write_all(b"GET /v1/ws HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}

#[tokio::test]
async fn off_loopback_there_is_tls_or_the_word_insecure() {
    let upstream = || Arc::new(Handle(Nodes::new()));
    let refused = Edge::start_with(config("0.0.0.0:0"), upstream())
        .err()
        .unwrap();
    assert!(matches!(refused, EdgeError::InTheClear(_)), "{refused}");
    let insecure = EdgeConfig {
        // Nobody listens beyond loopback in a test.
        http: "127.0.0.1:0".parse().unwrap(),
        insecure: true,
        ..config("0.0.0.0:0")
    };
    assert!(Edge::start_with(insecure, upstream()).is_ok());
    let nonsense = EdgeConfig {
        tls: Some(EdgeTls {
            cert_pem: b"no".to_vec(),
            key_pem: b"no".to_vec(),
        }),
        ..config("127.0.0.1:0")
    };
    let refused = Edge::start_with(nonsense, upstream()).err().unwrap();
    assert!(matches!(refused, EdgeError::Tls(_)), "{refused}");
}

#[tokio::test]
async fn an_address_in_use_is_an_error() {
    let bed = Bed::new();
    let taken = bed.edge.http_addr().to_string();
    let refused = Edge::start_with(config(&taken), Arc::new(Handle(Nodes::new())));
    assert!(matches!(refused.err().unwrap(), EdgeError::Listen { .. }));
}
