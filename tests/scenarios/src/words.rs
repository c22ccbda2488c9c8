//! Words of a command line: split at blanks, with quoted texts and `key=value` options.

use std::collections::BTreeMap;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// As it stands.
    Plain(String),
    /// From quotes, with escapes resolved.
    Quoted(String),
}

impl Word {
    /// Its text.
    pub fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Quoted(text) => text,
        }
    }
}

/// A command line: plain words in order, options by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    words: std::collections::VecDeque<Word>,
    options: BTreeMap<String, String>,
}

impl Line {
    /// Splits a line. Options may stand anywhere; a quoted word is never one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut line = Self::default();
        for word in split(text)? {
            let option = match &word {
                Word::Plain(text) => text.split_once('='),
                Word::Quoted(_) => None,
            };
            match option {
                Some((name, value)) => {
                    let before = line.options.insert(name.to_owned(), value.to_owned());
                    if before.is_some() {
                        return Err(format!("{name}= is said twice"));
                    }
                },
                None => line.words.push_back(word),
            }
        }
        Ok(line)
    }

    /// Takes the next word; `what` names it in an error.
    pub fn take(&mut self, what: &str) -> Result<String, String> {
        let word = self.words.pop_front();
        let word = word.ok_or_else(|| format!("{what} is missing"))?;
        Ok(word.text().to_owned())
    }

    /// Takes the next word, if there is one.
    pub fn take_if_any(&mut self) -> Option<String> {
        Some(self.words.pop_front()?.text().to_owned())
    }

    /// Takes all words left, cut at each plain `|`.
    pub fn take_groups(&mut self) -> Vec<Self> {
        let mut groups = vec![Self::default()];
        for word in std::mem::take(&mut self.words) {
            if word == Word::Plain("|".to_owned()) {
                groups.push(Self::default());
            } else if let Some(group) = groups.last_mut() {
                group.words.push_back(word);
            }
        }
        groups.retain(|group| !group.words.is_empty());
        groups
    }

    /// Takes an option as text.
    pub fn option(&mut self, name: &str) -> Option<String> {
        self.options.remove(name)
    }

    /// Takes an option and reads it.
    pub fn read<T>(&mut self, name: &str) -> Result<Option<T>, String>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let Some(text) = self.option(name) else {
            return Ok(None);
        };
        let value = text.parse();
        value
            .map(Some)
            .map_err(|error| format!("{name}={text}: {error}"))
    }

    /// Takes a number option; `default` if it is not there.
    pub fn number(&mut self, name: &str, default: u64) -> Result<u64, String> {
        Ok(self.read(name)?.unwrap_or(default))
    }

    /// Checks that everything was taken.
    pub fn end(self) -> Result<(), String> {
        if let Some(word) = self.words.front() {
            return Err(format!("unexpected {:?}", word.text()));
        }
        if let Some(name) = self.options.keys().next() {
            return Err(format!("unexpected {name}="));
        }
        Ok(())
    }
}

fn split(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            loop {
                match rest.next() {
                    None => return Err("a quote does not end".to_owned()),
                    Some('"') => break,
                    Some('\\') => match rest.next() {
                        Some('n') => word.push('\n'),
                        Some(other) => word.push(other),
                        None => return Err("a quote does not end".to_owned()),
                    },
                    Some(other) => word.push(other),
                }
            }
            words.push(Word::Quoted(word));
            continue;
        }
        word.push(first);
        while let Some(next) = rest.next_if(|next| !next.is_whitespace()) {
            word.push(next);
        }
        words.push(Word::Plain(word));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_split_into_words_options_and_groups() {
        let mut line = Line::parse(r#"publish r1 seq=2 a "x=\"1\" | y" | b"#).unwrap();
        assert_eq!(line.take("command").unwrap(), "publish");
        assert_eq!(line.take("run").unwrap(), "r1");
        assert_eq!(line.number("seq", 0).unwrap(), 2);
        let groups = line.take_groups();
        let texts = |group: &Line| -> Vec<String> {
            group
                .words
                .iter()
                .map(|word| word.text().to_owned())
                .collect()
        };
        let texts: Vec<_> = groups.iter().map(texts).collect();
        assert_eq!(texts, [vec!["a", "x=\"1\" | y"], vec!["b"]]);
        assert_eq!(line.end(), Ok(()));
        assert!(Line::parse("\"open").is_err());
        assert!(Line::parse("a=1 a=2").is_err());
    }
}
