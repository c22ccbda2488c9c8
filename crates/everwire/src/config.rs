//! Configuration of the servers: defaults < file < environment < flags.
//!
//! Flags and environment come through clap as options; the file's section and the defaults are
//! laid below them as TOML tables, and the whole is read back with unknown keys refused.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::output::Failure;
use crate::system::LogFormat;

/// Where the file is, and whether to print what came out.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Sources {
    /// A TOML file with the sections dev, node, edge and log
    #[arg(long, env = "EVERWIRE_CONFIG_FILE", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the effective configuration and stop
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// The log's own section.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub(crate) struct LogFlags {
    /// human or json
    #[arg(
        long = "log-format",
        env = "EVERWIRE_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<LogFormat>,
    /// A level, or a filter like info,everwire_edge=debug
    #[arg(long = "log-level", env = "EVERWIRE_LOG_LEVEL", value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<String>,
}

/// How a server logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            level: "info,openraft=error".to_owned(),
        }
    }
}

/// The sections that a file may have.
const SECTIONS: [&str; 4] = ["dev", "node", "edge", "log"];

/// Lays flags and environment over the file's section over the defaults.
pub(crate) fn layered<Config, Flags>(
    section: &str,
    sources: &Sources,
    flags: &Flags,
) -> Result<Config, Failure>
where
    Config: Serialize + DeserializeOwned + Default,
    Flags: Serialize,
{
    let table = |value: Result<toml::Table, toml::ser::Error>| {
        value.map_err(|error| Failure::usage(format!("configuration: {error}")))
    };
    let mut merged = table(toml::Table::try_from(Config::default()))?;
    merged.extend(file_section(section, sources)?);
    merged.extend(table(toml::Table::try_from(flags))?);
    merged
        .try_into()
        .map_err(|error| Failure::usage(format!("configuration of [{section}]: {error}")))
}

fn file_section(section: &str, sources: &Sources) -> Result<toml::Table, Failure> {
    let Some(path) = &sources.config else {
        return Ok(toml::Table::new());
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
    let file: toml::Table = text
        .parse()
        .map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
    if let Some(unknown) = file.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
        return Err(Failure::usage(format!(
            "{shown} has an unknown section [{unknown}]; known are {SECTIONS:?}"
        )));
    }
    match file.get(section) {
        None => Ok(toml::Table::new()),
        Some(toml::Value::Table(table)) => Ok(table.clone()),
        Some(_) => Err(Failure::usage(format!(
            "{shown}: {section} must be a section"
        ))),
    }
}

/// The effective configuration as a file that would give it.
pub(crate) fn printed<Config: Serialize>(
    section: &str,
    config: &Config,
    log: &LogConfig,
) -> Result<String, Failure> {
    let mut whole = toml::Table::new();
    let value = |value: Result<toml::Value, toml::ser::Error>| {
        value.map_err(|error| Failure::usage(error.to_string()))
    };
    whole.insert(section.to_owned(), value(toml::Value::try_from(config))?);
    whole.insert("log".to_owned(), value(toml::Value::try_from(log))?);
    toml::to_string(&whole).map_err(|error| Failure::usage(error.to_string()))
}

/// Refuses environment variables that look like a key of a section and are none: a misspelt key
/// would otherwise be silently without effect.
pub(crate) fn check_environment(command: &clap::Command) -> Result<(), Failure> {
    let mut known = Vec::new();
    collect_env(command, &mut known);
    let is_of_section = |key: &String| {
        SECTIONS.iter().any(|section| {
            key.strip_prefix("EVERWIRE_")
                .and_then(|key| key.strip_prefix(&section.to_uppercase()))
                .is_some_and(|key| key.starts_with('_'))
        })
    };
    let keys = std::env::vars_os().filter_map(|(key, _)| key.into_string().ok());
    for key in keys.filter(is_of_section) {
        if !known.contains(&key) {
            return Err(Failure::usage(format!(
                "the environment has an unknown key {key}"
            )));
        }
    }
    Ok(())
}

fn collect_env(command: &clap::Command, known: &mut Vec<String>) {
    let args = command.get_arguments().filter_map(|arg| arg.get_env());
    known.extend(args.map(|key| key.to_string_lossy().into_owned()));
    for sub in command.get_subcommands() {
        collect_env(sub, known);
    }
}

/// `90s`, `15m`, `1h`, `7d`; `what` says whose it is.
pub(crate) fn duration(what: &str, text: &str) -> Result<Duration, Failure> {
    let wrong = || Failure::usage(format!("{what} {text:?}: a number and s, m, h or d"));
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let number: u64 = digits.parse().map_err(|_not_a_number| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        grpc: String,
        http: String,
        insecure: bool,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                grpc: "default".into(),
                http: "default".into(),
                insecure: false,
            }
        }
    }

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        grpc: Option<String>,
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, Sources) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let sources = Sources {
            config: Some(file.path().to_owned()),
            print_config: false,
        };
        (file, sources)
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let (_file, sources) = file("[dev]\ngrpc = 'file'\nhttp = 'file'\n[edge]\nhttp = 'no'\n");
        let flags = Flags {
            grpc: Some("flag".into()),
        };
        let config: Config = layered("dev", &sources, &flags).unwrap();
        let expected = Config {
            grpc: "flag".into(),
            http: "file".into(),
            insecure: false,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn unknown_keys_and_sections_are_refused() {
        for text in [
            "[dev]\ngprc = 'typo'",
            "[devv]\n",
            "dev = 1",
            "[dev]\ninsecure = 'yes'",
        ] {
            let (_file, sources) = file(text);
            let result: Result<Config, _> = layered("dev", &sources, &Flags { grpc: None });
            assert!(result.is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        let read = |text: &str| duration("--ttl", text);
        assert_eq!(read("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(read("7d").unwrap(), Duration::from_secs(7 * 86_400));
        for bad in [
            "",
            "1",
            "h",
            "1w",
            "-1h",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
