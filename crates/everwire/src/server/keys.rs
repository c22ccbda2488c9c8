//! The keys and tokens that `everwire dev` makes for itself, so that the first ten minutes need
//! no key ceremony. A real deployment brings its own with `--auth-key`.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use everwire_core::grant::{Capability, Claims, Pattern};
use everwire_core::{Namespace, ParticipantId, ParticipantKind, Timestamp};
use everwire_proto::token::Signer;

use crate::output::Failure;

/// How long the development token lives; minted anew at every start.
const DEV_TOKEN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the token of the edge inside `dev` lives.
const EDGE_TOKEN_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// What `dev` signs and verifies with.
pub(crate) struct DevKeys {
    signer: Signer,
    /// What verifies tokens: its own public key and the given ones, or the given secret.
    pub(crate) verifying: Vec<u8>,
}

impl DevKeys {
    /// Reads `DIR/auth.key` and `.pub`, or makes them; `given` is what `--auth-key` named. With
    /// public keys in it, their tokens are good besides those of the own key; a secret replaces
    /// the own key.
    pub(crate) fn open(data: &Path, given: Option<Vec<u8>>) -> Result<Self, Failure> {
        let unusable = |what: &str, error: &dyn std::fmt::Display| {
            Failure::usage(format!("{what} cannot be used: {error}"))
        };
        let is_secret = |bytes: &[u8]| !bytes.starts_with(b"-----BEGIN ");
        if let Some(secret) = given.as_deref().filter(|bytes| is_secret(bytes)) {
            let signer = Signer::new(secret).map_err(|error| unusable("--auth-key", &error))?;
            let verifying = secret.to_vec();
            return Ok(Self { signer, verifying });
        }
        // What people said stands in it: nobody's but its owner's.
        DirBuilder::new().recursive(true).mode(0o700).create(data)?;
        let (private_path, public_path) = (data.join("auth.key"), data.join("auth.key.pub"));
        if !private_path.exists() {
            write_key_pair(&private_path)?;
        }
        let private = std::fs::read(&private_path)?;
        let signer = Signer::new(&private)
            .map_err(|error| unusable(&private_path.display().to_string(), &error))?;
        let mut verifying = std::fs::read(public_path)?;
        verifying.extend(given.unwrap_or_default());
        Ok(Self { signer, verifying })
    }

    /// A token that may do everything in namespace `dev`, written to `DIR/token`.
    pub(crate) fn write_dev_token(&self, data: &Path, now: Timestamp) -> Result<(), Failure> {
        let all = Capability::ALL
            .iter()
            .copied()
            .filter(|right| *right != Capability::Relay);
        let claims = Claims {
            namespace: Some(Namespace::parse("dev").expect("a good name")),
            participant: ParticipantId::parse("dev").expect("a good name"),
            kind: ParticipantKind::Operator,
            allow: vec![everything(all.collect())],
            expires: now.plus(DEV_TOKEN_TTL),
        };
        let token = self.signer.mint(&claims, now)?;
        write_private(&data.join("token"), format!("{token}\n").as_bytes())
    }

    /// A token for the edge of this process.
    pub(crate) fn edge_token(&self, now: Timestamp) -> Result<String, Failure> {
        let claims = Claims {
            namespace: None,
            participant: ParticipantId::parse("dev-edge").expect("a good name"),
            kind: ParticipantKind::Edge,
            allow: vec![everything(BTreeSet::from([Capability::Relay]))],
            expires: now.plus(EDGE_TOKEN_TTL),
        };
        Ok(self.signer.mint(&claims, now)?)
    }
}

fn everything(rights: BTreeSet<Capability>) -> (Pattern, BTreeSet<Capability>) {
    (Pattern::parse("*").expect("a good pattern"), rights)
}

/// Writes a new key to `path` and its public half beside it, `path.pub`.
pub(crate) fn write_key_pair(path: &Path) -> Result<(), Failure> {
    let (private, public) = Signer::generate();
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    std::fs::write(public_path, public)?;
    write_private(path, private.as_bytes())
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let mut file = file.map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    // The mode above is for a new file; one that was there keeps its own.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    Ok(())
}
