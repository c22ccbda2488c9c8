//! Tokens: JWTs with the claims of `core::grant`.
//!
//! Comes in: key material at start-up, then tokens that nobody has checked. Goes out: claims
//! whose signature, shape and time are good, or UNAUTHENTICATED / TOKEN_EXPIRED. Never: what a
//! token allows (that is `core::grant`), a clock (the time is passed in), a token or a secret in
//! a message.
//!
//! The claims as JSON: `{"ns", "sub", "kind", "allow": {pattern: [capability]}, "exp", "iat"}`.
//! `exp` is required, `nbf` is honoured, `aud` is not used. `ns` may be `*` for kind `edge` only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{EncodePrivateKey, EncodePublicKey, KeypairBytes};
use everwire_core::clock::Timestamp;
use everwire_core::event::ParticipantKind;
use everwire_core::grant::{Capability, Claims, Pattern};
use everwire_core::ids::{Namespace, ParticipantId};
use everwire_core::limits::{SECRET_BYTES_MIN, TOKEN_BYTES_MAX};
use everwire_core::{Code, Refusal};
use jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// The shortest RSA modulus, bytes.
const RSA_BYTES_MIN: usize = 2048 / 8;

/// A token as text. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer(String);

impl Bearer {
    /// Wraps a token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bearer({} bytes)", self.0.len())
    }
}

/// Key material that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret below its bound.
    #[error("a secret has at least {SECRET_BYTES_MIN} bytes")]
    ShortSecret,
    /// A PEM that is not the right half of a key that is known.
    #[error("not a {0} key in PEM that can be used: Ed25519, P-256, or RSA of 2,048 bits and more")]
    Pem(&'static str),
}

/// The two forms of key material: PEM says so itself, all else is a secret. So a PEM of either
/// half can never be taken for the secret of HS256.
enum Material<'a> {
    Pem(&'a [u8]),
    Secret(&'a [u8]),
}

impl<'a> Material<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, KeyError> {
        if holds(bytes, "-----BEGIN ") {
            return Ok(Self::Pem(bytes));
        }
        let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::ShortSecret);
        }
        Ok(Self::Secret(secret))
    }
}

fn holds(bytes: &[u8], mark: &str) -> bool {
    bytes
        .windows(mark.len())
        .any(|window| window == mark.as_bytes())
}

// === Verifier ===

/// Verifies tokens, with each key's own algorithm only.
#[derive(Clone)]
pub struct Verifier(Arc<[VerifyingKey]>);

struct VerifyingKey {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    /// PEM public keys (EdDSA, ES256, RS256), one after the other: a token of any of them is
    /// good, so that keys can be rotated. Else a secret (HS256) of at least 32 bytes; one line
    /// end after a secret is not part of it.
    pub fn new(material: &[u8]) -> Result<Self, KeyError> {
        let keys = match Material::of(material)? {
            Material::Pem(pem) => pem_blocks(pem)
                .map(|block| public_key(block).ok_or(KeyError::Pem("public")))
                .collect::<Result<Vec<_>, _>>()?,
            Material::Secret(secret) => {
                vec![(DecodingKey::from_secret(secret), Algorithm::HS256)]
            },
        };
        let keys = keys.into_iter().map(|(key, algorithm)| {
            let mut validation = Validation::new(algorithm);
            // The library would read the clock of the machine; `verify` checks times itself.
            validation.validate_exp = false;
            validation.validate_nbf = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            VerifyingKey { key, validation }
        });
        Ok(Self(keys.collect()))
    }

    /// The claims of a token whose signature, shape and time are good. Words in `allow` that
    /// are not known here are ignored, so that newer tokens work on older servers: they only
    /// ever give less.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(unauthenticated("the token is too long"));
        }
        let mut refused = unauthenticated("there is no key");
        for VerifyingKey { key, validation } in &*self.0 {
            match jsonwebtoken::decode::<ClaimsJson>(token, key, validation) {
                Ok(data) if data.header.crit.is_some() => {
                    return Err(unauthenticated("the token asks for an extension"));
                },
                Ok(data) => return claims_from(data.claims, now),
                Err(error) => refused = unauthenticated(reason(error.kind())),
            }
        }
        Err(refused)
    }
}

/// The PEM blocks of a file, each from its BEGIN to before the next.
fn pem_blocks(pem: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let starts = pem
        .windows(BEGIN.len())
        .enumerate()
        .filter(|(_, window)| *window == BEGIN)
        .map(|(at, _)| at);
    let ends: Vec<usize> = starts.clone().skip(1).chain([pem.len()]).collect();
    starts
        .zip(ends)
        .filter_map(|(start, end)| pem.get(start..end))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithms = self.0.iter().map(|key| &key.validation.algorithms);
        write!(f, "Verifier({:?})", algorithms.collect::<Vec<_>>())
    }
}

/// The key and its algorithm. `None` for all that is not a public key of a known kind: a
/// certificate, a private key by mistake, another curve.
fn public_key(pem: &[u8]) -> Option<(DecodingKey, Algorithm)> {
    if !holds(pem, "PUBLIC KEY-----") || holds(pem, "PRIVATE KEY-----") {
        return None;
    }
    if let Ok(key) = DecodingKey::from_ed_pem(pem) {
        // The library's verifier takes the first 32 bytes without looking.
        let is_whole = key.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == 32);
        return is_whole.then_some((key, Algorithm::EdDSA)).filter(verifies);
    }
    if let Ok(key) = DecodingKey::from_ec_pem(pem) {
        return Some((key, Algorithm::ES256)).filter(verifies);
    }
    let key = DecodingKey::from_rsa_pem(pem).ok()?;
    let components = DEFAULT_PROVIDER
        .key_utils
        .rsa_pub_components_from_public_key;
    let (modulus, _) = components(key.try_get_as_bytes().ok()?).ok()?;
    (modulus.len() >= RSA_BYTES_MIN).then_some((key, Algorithm::RS256))
}

/// Whether the library can make a verifier of the key: told at start-up, not at the first token.
fn verifies((key, algorithm): &(DecodingKey, Algorithm)) -> bool {
    jsonwebtoken::crypto::verify("", b"", key, *algorithm).is_ok()
}

fn unauthenticated(message: &str) -> Refusal {
    Refusal::new(Code::Unauthenticated, message)
}

/// Fixed sentences: the library's own may quote the token.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "the token's signature does not verify",
        ErrorKind::InvalidAlgorithm => "the token is signed with another algorithm than the key's",
        _ => "the token is no JWT that can be read here",
    }
}

// === Claims ===

/// The claims as they stand in a token. All optional, so that each missing one has its sentence.
#[derive(Serialize, Deserialize)]
struct ClaimsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    ns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default)]
    allow: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<Number>,
}

const ANY_NAMESPACE: &str = "*";

fn claims_from(json: ClaimsJson, now: Timestamp) -> Result<Claims, Refusal> {
    let exp = json
        .exp
        .ok_or_else(|| unauthenticated("the token has no exp"))?;
    let expires = time(&exp).ok_or_else(|| unauthenticated("the token's exp is no time"))?;
    if let Some(nbf) = &json.nbf {
        let not_before = time(nbf).ok_or_else(|| unauthenticated("the token's nbf is no time"))?;
        if now < not_before {
            return Err(unauthenticated("the token is not valid yet"));
        }
    }
    let kind = json.kind.as_deref().and_then(ParticipantKind::parse);
    // Nobody speaks as the server itself.
    let kind = kind.filter(|kind| *kind != ParticipantKind::Server);
    let kind = kind.ok_or_else(|| unauthenticated("the token has no kind that is known here"))?;
    let participant = json.sub.as_deref().map(ParticipantId::parse);
    let participant = participant
        .and_then(Result::ok)
        .ok_or_else(|| unauthenticated("the token has no sub that is a participant"))?;
    let allow = json
        .allow
        .iter()
        .map(|(pattern, words)| {
            let pattern = Pattern::parse(pattern)
                .map_err(|_shape| unauthenticated("the token allows for a bad session pattern"))?;
            let words = words.iter().filter_map(|word| Capability::parse(word));
            Ok((pattern, words.collect()))
        })
        .collect::<Result<_, Refusal>>()?;
    let claims = Claims {
        namespace: namespace_from(json.ns.as_deref(), kind)?,
        participant,
        kind,
        allow,
        expires,
    };
    claims.check_time(now)?;
    Ok(claims)
}

fn namespace_from(ns: Option<&str>, kind: ParticipantKind) -> Result<Option<Namespace>, Refusal> {
    match ns {
        Some(ANY_NAMESPACE) if kind == ParticipantKind::Edge => Ok(None),
        Some(ANY_NAMESPACE) => Err(unauthenticated("only an edge has a token of namespace *")),
        Some(text) => Namespace::parse(text)
            .map(Some)
            .map_err(|_shape| unauthenticated("the token's ns is no namespace")),
        None => Err(unauthenticated("the token has no ns")),
    }
}

/// A NumericDate: seconds since 1970, which may have a fraction.
fn time(number: &Number) -> Option<Timestamp> {
    if let Some(seconds) = number.as_u64() {
        return Some(Timestamp(seconds.saturating_mul(1000)));
    }
    let since = Duration::try_from_secs_f64(number.as_f64()?).ok()?;
    u64::try_from(since.as_millis()).ok().map(Timestamp)
}

// === Signer ===

/// Mints tokens.
#[derive(Clone)]
pub struct Signer(Arc<SignerInner>);

struct SignerInner {
    key: EncodingKey,
    algorithm: Algorithm,
}

impl Signer {
    /// A PEM private key (EdDSA and ES256 in PKCS #8, RS256), else a secret (HS256), as for
    /// [`Verifier::new`].
    pub fn new(material: &[u8]) -> Result<Self, KeyError> {
        let (key, algorithm) = match Material::of(material)? {
            Material::Pem(pem) => private_key(pem).ok_or(KeyError::Pem("private"))?,
            Material::Secret(secret) => (EncodingKey::from_secret(secret), Algorithm::HS256),
        };
        Ok(Self(Arc::new(SignerInner { key, algorithm })))
    }

    /// A token with these claims; `now` becomes `iat`. Times are whole seconds, rounded down.
    /// Refuses what [`Verifier::verify`] would refuse.
    pub fn mint(&self, claims: &Claims, now: Timestamp) -> Result<String, Refusal> {
        let ns = match &claims.namespace {
            Some(namespace) => namespace.as_str(),
            None => ANY_NAMESPACE,
        };
        namespace_from(Some(ns), claims.kind)?;
        let mut allow: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (pattern, capabilities) in &claims.allow {
            let words = allow.entry(pattern.as_str().to_owned()).or_default();
            words.extend(capabilities.iter().map(|one| one.as_str().to_owned()));
        }
        let json = ClaimsJson {
            ns: Some(ns.to_owned()),
            sub: Some(claims.participant.to_string()),
            kind: Some(claims.kind.as_str().to_owned()),
            allow,
            exp: Some((claims.expires.0 / 1000).into()),
            nbf: None,
            iat: Some((now.0 / 1000).into()),
        };
        let header = Header::new(self.0.algorithm);
        let token = jsonwebtoken::encode(&header, &json, &self.0.key)
            .map_err(|_library| Refusal::new(Code::Internal, "the token cannot be signed"))?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(unauthenticated("the token is too long"));
        }
        Ok(token)
    }

    /// A new Ed25519 key: the private and the public PEM, as openssl writes them.
    pub fn generate() -> (String, String) {
        let secret_key: [u8; 32] = rand::random();
        let public = SigningKey::from_bytes(&secret_key).verifying_key();
        let private = KeypairBytes {
            secret_key,
            public_key: None,
        };
        let private = private.to_pkcs8_pem(LineEnding::LF);
        let public = public.to_public_key_pem(LineEnding::LF);
        let private = private.expect("32 bytes fit a PEM").as_str().to_owned();
        (private, public.expect("32 bytes fit a PEM"))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({:?})", self.0.algorithm)
    }
}

fn private_key(pem: &[u8]) -> Option<(EncodingKey, Algorithm)> {
    if !holds(pem, "PRIVATE KEY-----") {
        return None;
    }
    if let Ok(key) = EncodingKey::from_ed_pem(pem) {
        return Some((key, Algorithm::EdDSA)).filter(signs);
    }
    if let Ok(key) = EncodingKey::from_ec_pem(pem) {
        return Some((key, Algorithm::ES256)).filter(signs);
    }
    let key = EncodingKey::from_rsa_pem(pem).ok()?;
    let components = DEFAULT_PROVIDER
        .key_utils
        .rsa_pub_components_from_private_key;
    let (modulus, _) = components(key.as_bytes()).ok()?;
    (modulus.len() >= RSA_BYTES_MIN)
        .then_some((key, Algorithm::RS256))
        .filter(signs)
}

/// Whether the library can sign with the key: told at start-up, not at the first token.
fn signs((key, algorithm): &(EncodingKey, Algorithm)) -> bool {
    jsonwebtoken::crypto::sign(b"", key, *algorithm).is_ok()
}

// === Small doors ===

/// One entry of `allow` for minting; refuses a word that is no capability.
pub fn allow<'a>(
    pattern: &str,
    words: impl IntoIterator<Item = &'a str>,
) -> Result<(Pattern, BTreeSet<Capability>), Refusal> {
    let words = words.into_iter().map(|word| {
        Capability::parse(word)
            .ok_or_else(|| unauthenticated(&format!("{word:?} is not a capability")))
    });
    Ok((Pattern::parse(pattern)?, words.collect::<Result<_, _>>()?))
}

/// The tenant that a token claims, unverified: to find a way by, never to allow anything.
/// `None` for a token of an edge, which speaks for every tenant, and for what is no token.
pub fn claimed_namespace(token: &str) -> Option<Namespace> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let claims: ClaimsJson = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
    Namespace::parse(&claims.ns?).ok()
}

/// The token in an `authorization` header, as HTTP and gRPC metadata carry it.
pub fn from_header(header: Option<&str>) -> Result<&str, Refusal> {
    let header = header.ok_or_else(|| unauthenticated("there is no authorization header"))?;
    match header.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(unauthenticated("the authorization header is not Bearer …")),
    }
}
