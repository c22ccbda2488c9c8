//! Tokens for tests, minted with a server's own key or with somebody else's.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine;
use everwire_core::grant::{Capability, Claims, Pattern};
use everwire_core::{Namespace, ParticipantId, ParticipantKind, Timestamp};
use everwire_proto::token::Signer;

/// All that anybody but an edge can be allowed.
pub fn everything() -> Vec<Capability> {
    let all = Capability::ALL.into_iter();
    all.filter(|right| *right != Capability::Relay).collect()
}

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "a test has the machine's clock")]
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ms = since.expect("after 1970").as_millis();
    Timestamp(u64::try_from(ms).expect("before the year 500,000,000"))
}

/// The key with which `everwire dev` signs.
pub fn dev_signer(data: &Path) -> Signer {
    let key = std::fs::read(data.join("auth.key")).expect("dev writes its key");
    Signer::new(&key).expect("a good key")
}

/// Claims for an hour in namespace `dev`.
pub fn claims(participant: &str, kind: ParticipantKind, allow: &[(&str, &[Capability])]) -> Claims {
    let allow = allow.iter().map(|(pattern, rights)| {
        let rights: BTreeSet<Capability> = rights.iter().copied().collect();
        (Pattern::parse(pattern).expect("a good pattern"), rights)
    });
    Claims {
        namespace: Some(Namespace::parse("dev").expect("a good name")),
        participant: ParticipantId::parse(participant).expect("a good name"),
        kind,
        allow: allow.collect(),
        expires: Timestamp(now().0 + 3_600_000),
    }
}

/// The token of a person who may also pause, resume, approve and deny.
pub fn decider(data: &Path, participant: &str) -> String {
    let rights = [
        Capability::Subscribe,
        Capability::SignalPause,
        Capability::SignalResume,
        Capability::SignalApprove,
        Capability::SignalDeny,
    ];
    mint(
        data,
        &claims(participant, ParticipantKind::User, &[("*", &rights)]),
    )
}

/// A person's token: what a chat page needs, on all sessions.
pub fn user(data: &Path, participant: &str) -> String {
    let rights = [
        Capability::Create,
        Capability::Subscribe,
        Capability::Publish,
        Capability::SignalCancel,
        Capability::History,
        Capability::Presence,
    ];
    mint(
        data,
        &claims(participant, ParticipantKind::User, &[("*", &rights)]),
    )
}

/// An agent's token on all sessions.
pub fn agent(data: &Path, participant: &str) -> String {
    let rights = [
        Capability::Create,
        Capability::Subscribe,
        Capability::Publish,
        Capability::Run,
        Capability::History,
    ];
    mint(
        data,
        &claims(participant, ParticipantKind::Agent, &[("*", &rights)]),
    )
}

/// An edge's own token.
pub fn edge(data: &Path) -> String {
    let all: (&str, &[Capability]) = ("*", &[Capability::Relay]);
    let mut claims = claims("edge", ParticipantKind::Edge, &[all]);
    claims.namespace = None;
    mint(data, &claims)
}

/// A token with these claims, signed by the server's key.
pub fn mint(data: &Path, claims: &Claims) -> String {
    dev_signer(data).mint(claims, now()).expect("good claims")
}

/// A person's token with every right but these.
pub fn without(data: &Path, participant: &str, missing: &[Capability]) -> String {
    let mut rights = everything();
    rights.retain(|right| !missing.contains(right));
    mint(
        data,
        &claims(participant, ParticipantKind::User, &[("*", &rights)]),
    )
}

/// Every right, in another namespace.
pub fn of_namespace(data: &Path, namespace: &str, participant: &str) -> String {
    let rights = everything();
    let mut claims = claims(participant, ParticipantKind::Operator, &[("*", &rights)]);
    claims.namespace = Some(Namespace::parse(namespace).expect("a good name"));
    mint(data, &claims)
}

/// Every right, until a minute ago.
pub fn expired(data: &Path, participant: &str) -> String {
    let rights = everything();
    let mut claims = claims(participant, ParticipantKind::User, &[("*", &rights)]);
    claims.expires = Timestamp(now().0 - 60_000);
    mint(data, &claims)
}

/// Every right, signed by somebody else's key.
pub fn forged(participant: &str) -> String {
    let rights = everything();
    let claims = claims(participant, ParticipantKind::User, &[("*", &rights)]);
    let (private, _) = Signer::generate();
    let signer = Signer::new(private.as_bytes()).expect("a good key");
    signer.mint(&claims, now()).expect("good claims")
}

/// The claims of a good token under another header and signature.
pub fn resigned(token: &str, header: &str, signature: &[u8]) -> String {
    let claims = token.split('.').nth(1).expect("a JWT has three parts");
    let encode = |bytes: &[u8]| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes);
    format!(
        "{}.{claims}.{}",
        encode(header.as_bytes()),
        encode(signature)
    )
}
