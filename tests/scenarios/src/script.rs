//! A scenario file: comments, commands and expected answers, kept so that it can be written back.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What stands between a command and its answer.
pub const ARROW: &str = "→";

/// The column of the arrow when a file is written back and the command is not longer.
const ARROW_COLUMN: usize = 56;

/// One entry of a file, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A comment or a blank line, as it stands.
    Note(String),
    /// A command.
    Command {
        /// The line's number, from 1.
        number: usize,
        /// The command.
        text: String,
        /// The answer's lines; none if no answer is expected.
        expected: Vec<String>,
    },
}

/// A scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its name without folder and ending.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its entries.
    pub entries: Vec<Entry>,
}

impl Script {
    /// All scenario files, in the order of their names.
    pub fn all() -> Result<Vec<Self>, String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("files");
        let entries = std::fs::read_dir(&folder).map_err(|error| error.to_string())?;
        let paths = entries.map_while(Result::ok).map(|entry| entry.path());
        let is_script = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "txt");
        let mut paths: Vec<_> = paths.filter(is_script).collect();
        paths.sort();
        paths.into_iter().map(|path| Self::read(&path)).collect()
    }

    /// Reads one file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
        let name = path
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned());
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            read_line(number, line, &mut entries)
                .map_err(|error| format!("{}:{number}: {error}", path.display()))?;
        }
        Ok(Self {
            name: name.unwrap_or_default(),
            path: path.to_owned(),
            entries,
        })
    }

    /// The first line: what the file is about.
    pub fn purpose(&self) -> Option<&str> {
        match self.entries.first() {
            Some(Entry::Note(note)) => note.strip_prefix("# "),
            _ => None,
        }
    }

    /// The words of its `# needs:` line.
    pub fn needs(&self) -> Vec<&str> {
        let notes = self.entries.iter().filter_map(|entry| match entry {
            Entry::Note(note) => note.strip_prefix("# needs:"),
            Entry::Command { .. } => None,
        });
        notes.flat_map(str::split_whitespace).collect()
    }

    /// The file as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            let _ = match entry {
                Entry::Note(note) => writeln!(text, "{note}"),
                Entry::Command {
                    text: command,
                    expected,
                    ..
                } => match expected.as_slice() {
                    [] => writeln!(text, "{command}"),
                    [one] => writeln!(text, "{command:<ARROW_COLUMN$} {ARROW} {one}"),
                    many => {
                        let lines: String = many.iter().map(|line| format!("  {line}\n")).collect();
                        write!(text, "{command} {ARROW}\n{lines}")
                    },
                },
            };
        }
        text
    }
}

fn read_line(number: usize, line: &str, entries: &mut Vec<Entry>) -> Result<(), String> {
    if line.trim().is_empty() || line.starts_with('#') {
        entries.push(Entry::Note(line.trim_end().to_owned()));
        return Ok(());
    }
    if line.starts_with(' ') {
        return match entries.last_mut() {
            Some(Entry::Command { expected, .. }) => {
                expected.push(line.trim().to_owned());
                Ok(())
            },
            _ => Err("an answer without a command".to_owned()),
        };
    }
    let (text, answer) = match line.split_once(ARROW) {
        Some((text, answer)) => (text, Some(answer.trim())),
        None => (line, None),
    };
    let answer = answer.filter(|answer| !answer.is_empty());
    entries.push(Entry::Command {
        number,
        text: text.trim().to_owned(),
        expected: answer.map(str::to_owned).into_iter().collect(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_back_as_they_were_read() {
        for script in Script::all().unwrap() {
            let text = std::fs::read_to_string(&script.path).unwrap();
            assert_eq!(script.text(), text, "{}", script.name);
        }
    }
}
