//! Tokens: what verifies, and the ways in which a token is forged.
#![expect(clippy::unwrap_used, reason = "a helper's panic fails its test")]

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use everwire_core::clock::Timestamp;
use everwire_core::event::ParticipantKind;
use everwire_core::grant::{Capability, Claims, Pattern};
use everwire_core::ids::{Namespace, ParticipantId};
use everwire_core::{Code, Refusal};
use everwire_proto::token::{KeyError, Signer, Verifier, allow, from_header};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret of at least 32 bytes ......";
const NOW: Timestamp = Timestamp(1_700_000_000_500);
const EXP: u64 = 1_700_000_060;

fn key(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

fn claims() -> Claims {
    let capabilities = [Capability::Subscribe, Capability::SignalCancel];
    Claims {
        namespace: Some(Namespace::parse("acme").unwrap()),
        participant: ParticipantId::parse("ann").unwrap(),
        kind: ParticipantKind::User,
        allow: vec![(
            Pattern::parse("chat-*").unwrap(),
            BTreeSet::from(capabilities),
        )],
        expires: Timestamp(EXP * 1000),
    }
}

fn good_json() -> Value {
    json!({"ns": "acme", "sub": "ann", "kind": "user", "exp": EXP,
        "allow": {"chat-*": ["subscribe", "signal:cancel"]}})
}

/// A token with any claims, signed well with the secret.
fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

fn verify(claims: &Value) -> Result<Claims, Refusal> {
    Verifier::new(SECRET).unwrap().verify(&signed(claims), NOW)
}

fn refused(claims: &Value) -> (Code, String) {
    let refusal = verify(claims).unwrap_err();
    (refusal.code, refusal.message)
}

#[test]
fn tokens_of_every_algorithm_verify_with_their_own_key_only() {
    let pairs = [
        (key("eddsa"), key("eddsa.pub"), "EdDSA"),
        (key("es256"), key("es256.pub"), "ES256"),
        (key("rs256"), key("rs256.pub"), "RS256"),
        (SECRET.to_vec(), SECRET.to_vec(), "HS256"),
    ];
    for (private, _, name) in &pairs {
        let signer = Signer::new(private).unwrap();
        assert!(format!("{signer:?}").contains(name));
        let token = signer.mint(&claims(), NOW).unwrap();
        for (_, public, other) in &pairs {
            let answer = Verifier::new(public).unwrap().verify(&token, NOW);
            if name == other {
                assert_eq!(answer, Ok(claims()), "{name}");
            } else {
                let refusal = answer.unwrap_err();
                assert_eq!(refusal.code, Code::Unauthenticated, "{name} {other}");
                assert!(!refusal.message.contains(&token), "{refusal}");
            }
        }
    }
}

#[test]
fn a_generated_key_signs_and_another_does_not_verify_it() {
    let (private, public) = Signer::generate();
    let (_, other) = Signer::generate();
    let token = Signer::new(private.as_bytes())
        .unwrap()
        .mint(&claims(), NOW);
    let verify = |public: &str| {
        let verifier = Verifier::new(public.as_bytes()).unwrap();
        verifier.verify(token.as_ref().unwrap(), NOW)
    };
    assert_eq!(verify(&public), Ok(claims()));
    assert_eq!(verify(&other).unwrap_err().code, Code::Unauthenticated);
}

#[test]
fn a_token_ends_at_its_exp_to_the_millisecond() {
    let verifier = Verifier::new(SECRET).unwrap();
    let token = Signer::new(SECRET).unwrap().mint(&claims(), NOW).unwrap();
    assert!(verifier.verify(&token, Timestamp(EXP * 1000 - 1)).is_ok());
    let refusal = verifier.verify(&token, Timestamp(EXP * 1000)).unwrap_err();
    assert_eq!(refusal.code, Code::TokenExpired);
}

#[test]
fn a_forged_signature_is_refused() {
    let verifier = Verifier::new(&key("eddsa.pub")).unwrap();
    let signer = Signer::new(&key("eddsa")).unwrap();
    let token = signer.mint(&claims(), NOW).unwrap();
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let admin = json!({"ns": "acme", "sub": "ann", "kind": "operator", "exp": EXP,
        "allow": {"*": ["admin"]}});
    parts[1] = URL_SAFE_NO_PAD.encode(admin.to_string());
    let forged = parts.join(".");
    let refusal = verifier.verify(&forged, NOW).unwrap_err();
    assert_eq!(refusal.code, Code::Unauthenticated);
    assert!(!refusal.to_string().contains(&parts[1]));
}

#[test]
fn alg_none_is_refused() {
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
        let body = URL_SAFE_NO_PAD.encode(good_json().to_string());
        for material in [SECRET.to_vec(), key("eddsa.pub"), key("rs256.pub")] {
            let verifier = Verifier::new(&material).unwrap();
            for token in [format!("{header}.{body}."), format!("{header}.{body}")] {
                let refusal = verifier.verify(&token, NOW).unwrap_err();
                assert_eq!(refusal.code, Code::Unauthenticated);
            }
        }
    }
}

#[test]
fn a_public_key_is_not_a_secret() {
    for name in ["eddsa.pub", "es256.pub", "rs256.pub"] {
        let public = key(name);
        let verifier = Verifier::new(&public).unwrap();
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let secret = EncodingKey::from_secret(&public);
            let token = jsonwebtoken::encode(&Header::new(algorithm), &good_json(), &secret);
            let refusal = verifier.verify(&token.unwrap(), NOW).unwrap_err();
            assert_eq!(refusal.code, Code::Unauthenticated, "{name}");
        }
        assert_eq!(
            Signer::new(&public).unwrap_err(),
            KeyError::Pem("private"),
            "{name}"
        );
    }
}

#[test]
fn another_algorithm_of_the_same_key_is_refused() {
    let secret = EncodingKey::from_secret(SECRET);
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS512), &good_json(), &secret);
    let verifier = Verifier::new(SECRET).unwrap();
    assert!(verifier.verify(&token.unwrap(), NOW).is_err());
    let rsa = EncodingKey::from_rsa_pem(&key("rs256")).unwrap();
    let verifier = Verifier::new(&key("rs256.pub")).unwrap();
    for algorithm in [Algorithm::RS512, Algorithm::PS256] {
        let token = jsonwebtoken::encode(&Header::new(algorithm), &good_json(), &rsa);
        assert!(verifier.verify(&token.unwrap(), NOW).is_err());
    }
}

#[test]
fn every_claim_that_is_missing_or_wrong_is_named() {
    assert_eq!(verify(&good_json()), Ok(claims()));
    for name in ["exp", "ns", "sub", "kind"] {
        let mut claims = good_json();
        claims.as_object_mut().unwrap().remove(name);
        let (code, message) = refused(&claims);
        assert_eq!(code, Code::Unauthenticated);
        assert!(message.contains(name), "{message}");
    }
    for (name, value) in [
        ("exp", json!(-5)),
        ("exp", json!("soon")),
        ("exp", json!(null)),
        ("ns", json!("Acme")),
        ("sub", json!("a b")),
        ("kind", json!("god")),
        ("allow", json!({"a b": ["subscribe"]})),
        ("allow", json!(["subscribe"])),
        ("nbf", json!(EXP - 1)),
    ] {
        let mut claims = good_json();
        claims[name] = value.clone();
        assert_eq!(refused(&claims).0, Code::Unauthenticated, "{name} {value}");
    }
    let mut fraction = good_json();
    fraction["exp"] = json!(1_700_000_000.75);
    let expires = verify(&fraction).unwrap().expires;
    assert_eq!(expires, Timestamp(1_700_000_000_750));
}

#[test]
fn a_token_without_allow_allows_nothing_and_unknown_words_are_ignored() {
    let mut claims = good_json();
    claims["allow"] = json!({"chat-*": ["subscribe", "levitate"]});
    let verified = verify(&claims).unwrap();
    let only = BTreeSet::from([Capability::Subscribe]);
    assert_eq!(verified.allow[0].1, only);
    claims.as_object_mut().unwrap().remove("allow");
    assert_eq!(verify(&claims).unwrap().allow, []);
    assert_eq!(
        allow("*", ["subscribe", "levitate"]).unwrap_err().code,
        Code::Unauthenticated
    );
    assert_eq!(allow("chat-*", ["subscribe"]).unwrap().1, only);
    assert_eq!(allow("a*b", []).unwrap_err().code, Code::Malformed);
}

#[test]
fn only_an_edge_may_have_every_namespace() {
    let mut json = good_json();
    json["ns"] = json!("*");
    assert_eq!(refused(&json).0, Code::Unauthenticated);
    json["kind"] = json!("edge");
    assert_eq!(verify(&json).unwrap().namespace, None);
    json["ns"] = json!("acme");
    assert_eq!(verify(&json).unwrap().namespace, claims().namespace);

    let signer = Signer::new(SECRET).unwrap();
    let user = Claims {
        namespace: None,
        ..claims()
    };
    assert!(signer.mint(&user, NOW).is_err());
    let edge = Claims {
        kind: ParticipantKind::Edge,
        ..user
    };
    let token = signer.mint(&edge, NOW).unwrap();
    let verifier = Verifier::new(SECRET).unwrap();
    assert_eq!(verifier.verify(&token, NOW), Ok(edge));
}

#[test]
fn extensions_and_long_tokens_are_refused() {
    let verifier = Verifier::new(SECRET).unwrap();
    let mut header = Header::new(Algorithm::HS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let token = jsonwebtoken::encode(&header, &good_json(), &EncodingKey::from_secret(SECRET));
    assert!(verifier.verify(&token.unwrap(), NOW).is_err());
    let mut long = good_json();
    long["note"] = json!("x".repeat(8 << 10));
    assert!(verify(&long).unwrap_err().message.contains("too long"));
}

#[test]
fn junk_is_refused_without_a_panic() {
    for material in [SECRET.to_vec(), key("eddsa.pub"), key("es256.pub")] {
        let verifier = Verifier::new(&material).unwrap();
        for token in [
            "",
            ".",
            "..",
            "...",
            "a.b.c",
            "é.é.é",
            "eyJhbGciOiJFZERTQSJ9.e30.",
        ] {
            let refusal = verifier.verify(token, NOW).unwrap_err();
            assert_eq!(refusal.code, Code::Unauthenticated, "{token}");
        }
    }
}

#[test]
fn bad_key_material_is_told_at_once() {
    let error = |material: &[u8]| Verifier::new(material).unwrap_err();
    assert_eq!(error(b"short"), KeyError::ShortSecret);
    assert_eq!(error(&[b'x'; 31]), KeyError::ShortSecret);
    assert_eq!(error(b""), KeyError::ShortSecret);
    for name in ["eddsa", "es256", "rs256", "rsa1024.pub", "p384.pub"] {
        assert_eq!(error(&key(name)), KeyError::Pem("public"), "{name}");
    }
    let mut cut = key("eddsa.pub");
    cut.truncate(cut.len() / 2);
    assert_eq!(error(&cut), KeyError::Pem("public"));
    // A well-formed PEM with too few key bytes.
    let short = b"-----BEGIN PUBLIC KEY-----\nMA0wBQYDK2VwAwQAAQID\n-----END PUBLIC KEY-----\n";
    assert_eq!(error(short), KeyError::Pem("public"));
    assert_eq!(
        Signer::new(&key("p384.pub")).unwrap_err(),
        KeyError::Pem("private")
    );
}

#[test]
fn one_line_end_after_a_secret_does_not_count() {
    let token = Signer::new(SECRET).unwrap().mint(&claims(), NOW).unwrap();
    for end in [&b"\n"[..], b"\r\n"] {
        let verifier = Verifier::new(&[SECRET, end].concat()).unwrap();
        assert!(verifier.verify(&token, NOW).is_ok());
    }
}

#[test]
fn nothing_prints_a_token_or_a_key() {
    let bearer = everwire_proto::token::Bearer::new("abc.def.ghi");
    assert_eq!(format!("{bearer:?}"), "Bearer(11 bytes)");
    let verifier = format!("{:?}", Verifier::new(SECRET).unwrap());
    assert_eq!(verifier, "Verifier([[HS256]])");
}

#[test]
fn headers_carry_a_bearer() {
    assert_eq!(from_header(Some("Bearer a.b.c")), Ok("a.b.c"));
    assert_eq!(from_header(Some("bearer  a.b.c ")), Ok("a.b.c"));
    for bad in [None, Some(""), Some("a.b.c"), Some("Basic eHg=")] {
        assert_eq!(from_header(bad).unwrap_err().code, Code::Unauthenticated);
    }
}

#[test]
fn a_file_with_two_public_keys_takes_tokens_of_both() {
    let ((old_private, old_public), (new_private, new_public)) =
        (Signer::generate(), Signer::generate());
    let verifier = Verifier::new(format!("{old_public}{new_public}").as_bytes()).unwrap();
    for private in [&old_private, &new_private] {
        let token = Signer::new(private.as_bytes())
            .unwrap()
            .mint(&claims(), NOW);
        assert_eq!(verifier.verify(&token.unwrap(), NOW), Ok(claims()));
    }
    let (stranger, _) = Signer::generate();
    let token = Signer::new(stranger.as_bytes())
        .unwrap()
        .mint(&claims(), NOW);
    let refusal = verifier.verify(&token.unwrap(), NOW).unwrap_err();
    assert_eq!(refusal.code, Code::Unauthenticated);
    let with_private = format!("{old_public}{new_private}");
    assert!(Verifier::new(with_private.as_bytes()).is_err());
}
