//! The commands that talk to a cluster, each a skin over the client.

pub(crate) mod cancel;
pub(crate) mod cluster;
pub(crate) mod limits;
pub(crate) mod publish;
pub(crate) mod session;
pub(crate) mod signal;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod token;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use everwire_client::{Client, ClientConfig, TlsConfig};
use everwire_core::SessionName;

use crate::output::{Failure, parsed};
use crate::system::{SystemClock, SystemRandom};

/// How long a command looks for a node that answers.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Where `everwire dev` leaves its token by default: no flag is needed on the first day.
const DEV_TOKEN: &str = "./everwire-data/token";

/// How to reach a cluster, and as whom.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connection {
    /// gRPC addresses, comma-separated
    #[arg(
        long,
        env = "EVERWIRE_ADDR",
        default_value = "127.0.0.1:7400",
        value_delimiter = ','
    )]
    addr: Vec<String>,
    /// The token; without it --token-file, or ./everwire-data/token if it is there
    #[arg(long, env = "EVERWIRE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token
    #[arg(long, env = "EVERWIRE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authority that signed the certificates of nodes and edge, PEM; makes connections TLS
    #[arg(long, env = "EVERWIRE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Connection {
    /// A client; nothing is connected yet.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let (clock, random) = (SystemClock::shared(), SystemRandom::shared());
        let mut config = ClientConfig::new(self.addr.clone(), self.token()?, clock, random);
        config.tls = self.ca_pem()?.map(|ca_pem| TlsConfig { ca_pem });
        config.deadline = DEADLINE;
        Ok(Client::new(config)?)
    }

    /// Whom to trust, if it was said.
    pub(crate) fn ca_pem(&self) -> Result<Option<Vec<u8>>, Failure> {
        let read = |path: &PathBuf| crate::server::read_file("--ca", path);
        self.ca.as_ref().map(read).transpose()
    }

    /// The token to use.
    pub(crate) fn token(&self) -> Result<String, Failure> {
        if let Some(token) = &self.token {
            return Ok(token.trim().to_owned());
        }
        let fallback = Path::new(DEV_TOKEN);
        let path = match &self.token_file {
            Some(path) => path.as_path(),
            None if fallback.exists() => fallback,
            None => {
                let message = "there is no token: set EVERWIRE_TOKEN, --token or --token-file";
                return Err(Failure::Refused(everwire_core::Refusal::new(
                    everwire_core::Code::Unauthenticated,
                    message,
                )));
            },
        };
        let token = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!(
                "the token file {} cannot be read: {error}",
                path.display()
            ))
        })?;
        Ok(token.trim().to_owned())
    }
}

/// A session from the command line.
pub(crate) fn session_name(text: &str) -> Result<SessionName, Failure> {
    parsed("session", text, SessionName::parse(text))
}
