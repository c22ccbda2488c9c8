//! Runs a scenario file against a subject and compares.

use std::future::Future;

use everwire_core::Cursor;
use everwire_core::Offset;
use everwire_core::event::Body;

use crate::answer::Answer;
use crate::script::{Entry, Script};
use crate::step::{Action, Context, Step, parse};
use crate::words::Line;

/// What some files need and some subjects cannot give; a file says it in a `# needs:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `advance`: the subject's time can be moved.
    Clock,
    /// The rules without a node's door in front of them: `resolve`, the attach function itself,
    /// and commands for which a node refuses the token first.
    Function,
    /// Thousands of steps.
    Bulk,
    /// An `app` event named `everwire.test.poison` makes the rules panic.
    Poison,
}

impl Need {
    /// The need with this word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "clock" => Some(Self::Clock),
            "function" => Some(Self::Function),
            "bulk" => Some(Self::Bulk),
            "poison" => Some(Self::Poison),
            _ => None,
        }
    }
}

/// Whatever performs steps: the rules alone, or a live server. One value serves one file.
pub trait Subject {
    /// Whether it can give this.
    fn offers(&self, need: Need) -> bool;

    /// Performs one step. Steps of a file come one after the other, and each is answered before
    /// the next one comes.
    fn perform(&mut self, step: &Step) -> impl Future<Output = Answer>;
}

/// How a file went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Every answer was the expected one.
    Passed,
    /// The subject cannot give what the file needs.
    Skipped(String),
    /// What differed, ready to be printed.
    Failed(Vec<String>),
}

/// Runs a file. Answers how it went and the file with the answers that were given.
pub async fn run(script: &Script, subject: &mut impl Subject) -> (Report, Script) {
    for word in script.needs() {
        match Need::parse(word) {
            None => {
                return (
                    Report::Failed(vec![format!("{word} is no need")]),
                    script.clone(),
                );
            },
            Some(need) if !subject.offers(need) => {
                return (Report::Skipped(word.to_owned()), script.clone());
            },
            Some(_) => {},
        }
    }
    let mut run = Run::default();
    let mut given = script.clone();
    let mut failures = Vec::new();
    for entry in &mut given.entries {
        let Entry::Command {
            number,
            text,
            expected,
        } = entry
        else {
            continue;
        };
        let lines = run.command(text, subject).await;
        let lines = lines.unwrap_or_else(|error| vec![format!("error: {error}")]);
        let is_error = lines.iter().any(|line| line.starts_with("error: "));
        if lines != *expected || is_error {
            failures.push(format!(
                "{}:{number}: {text}\n  expected:\n{}  got:\n{}",
                script.path.display(),
                indented(expected),
                indented(&lines),
            ));
        }
        *expected = lines;
    }
    let report = match failures.is_empty() {
        true => Report::Passed,
        false => Report::Failed(failures),
    };
    (report, given)
}

fn indented(lines: &[String]) -> String {
    if lines.is_empty() {
        return "    (no answer)\n".to_owned();
    }
    lines.iter().map(|line| format!("    {line}\n")).collect()
}

/// A file while it runs.
#[derive(Default)]
struct Run {
    context: Context,
    /// What `resend` can send again.
    sent: Vec<Step>,
}

impl Run {
    /// Performs one command line and writes its answer down.
    async fn command(
        &mut self,
        text: &str,
        subject: &mut impl Subject,
    ) -> Result<Vec<String>, String> {
        let word = text.split_whitespace().next().unwrap_or_default();
        match word {
            "repeat" => self.repeat(text, subject).await,
            "resend" => self.resend(text, subject).await,
            "text" => self.text(text, subject).await,
            _ => {
                let step = parse(text, &self.context)?;
                self.step(step, subject).await
            },
        }
    }

    async fn step(
        &mut self,
        step: Step,
        subject: &mut impl Subject,
    ) -> Result<Vec<String>, String> {
        let answer = subject.perform(&step).await;
        if let Some(epoch) = answer.session_epoch()
            && !self.context.epochs.contains(&epoch)
        {
            self.context.epochs.push(epoch);
        }
        self.follow(&step.action, &answer);
        if step.action.is_command() {
            self.sent.push(step);
        }
        Ok(answer.lines(&self.context.epochs))
    }

    /// Keeps what each tab has seen: all that a reader must keep to come back.
    fn follow(&mut self, action: &Action, answer: &Answer) {
        match (action, answer) {
            (
                Action::Attach { tab, .. },
                Answer::Resumed {
                    session_epoch,
                    from,
                    ..
                },
            ) => {
                let cursor = Cursor {
                    session_epoch: Some(*session_epoch),
                    offset: from.previous(),
                };
                self.context.tabs.insert(tab.clone(), cursor);
            },
            (Action::Attach { tab, .. }, _) => {
                self.context.tabs.remove(tab);
            },
            (Action::Read { tab }, Answer::Events(events)) => {
                if let (Some(cursor), Some(last)) = (self.context.tabs.get_mut(tab), events.last())
                {
                    cursor.offset = last.offset;
                }
            },
            _ => {},
        }
    }

    /// `repeat 2..66 COMMAND`: the command once per number, which stands in place of `{n}`, and its
    /// double in place of `{2n}`. The answer is the last one; it is an error if another begins with
    /// another word.
    async fn repeat(
        &mut self,
        text: &str,
        subject: &mut impl Subject,
    ) -> Result<Vec<String>, String> {
        let rest = text.trim_start_matches("repeat").trim_start();
        let (range, command) = rest.split_once(' ').ok_or("repeat what?")?;
        let (first, last) = range.split_once("..").ok_or("repeat 2..66")?;
        let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        let mut answer: Option<Vec<String>> = None;
        for place in number(first)?..=number(last)? {
            let command = command.replace("{n}", &place.to_string());
            let command = command.replace("{2n}", &(2 * place).to_string());
            let step = parse(&command, &self.context)?;
            let lines = self.step(step, subject).await?;
            let word = |lines: &[String]| lines.first()?.split(' ').next().map(str::to_owned);
            if let Some(before) = &answer
                && word(before) != word(&lines)
            {
                return Err(format!("at {place}: {lines:?} after {before:?}"));
            }
            answer = Some(lines);
        }
        Ok(answer.unwrap_or_default())
    }

    /// `resend [last=N] [by=WHO]`: the last commands again, exactly, in their order.
    async fn resend(
        &mut self,
        text: &str,
        subject: &mut impl Subject,
    ) -> Result<Vec<String>, String> {
        let mut line = Line::parse(text)?;
        line.take("a command")?;
        let last = usize::try_from(line.number("last", 1)?).map_err(|error| error.to_string())?;
        let by = line.option("by");
        line.end()?;
        let is_meant = |step: &&Step| {
            by.as_ref()
                .is_none_or(|by| step.by.participant.as_str() == by)
        };
        let meant = self.sent.iter().rev().filter(is_meant).take(last);
        let mut meant: Vec<_> = meant.cloned().collect();
        if meant.len() < last {
            return Err("so much was not sent".to_owned());
        }
        meant.reverse();
        let mut lines = Vec::new();
        for step in meant {
            let answer = subject.perform(&step).await;
            lines.extend(answer.lines(&self.context.epochs));
        }
        Ok(lines)
    }

    /// `text MESSAGE PART [session=S]`: what a reader assembles, by positions alone.
    async fn text(
        &mut self,
        text: &str,
        subject: &mut impl Subject,
    ) -> Result<Vec<String>, String> {
        let mut line = Line::parse(text)?;
        line.take("a command")?;
        let (message, part) = (line.take("a message")?, line.take("a part")?);
        let session = line.option("session").unwrap_or_else(|| "s".to_owned());
        line.end()?;
        let mut step = parse(&format!("log session={session}"), &self.context)?;
        step.action = Action::Log {
            from: Offset::ZERO.next(),
        };
        let Answer::Events(events) = subject.perform(&step).await else {
            return Err("the log cannot be read".to_owned());
        };
        let mut assembled = String::new();
        for event in &events {
            if let Body::PartDelta {
                message: of,
                part: other,
                position,
                text,
            } = &event.body
                && (of.as_str(), other.as_str()) == (&message, &part)
            {
                if u64::try_from(assembled.len()) != Ok(*position) {
                    return Err(format!("a hole before offset {}", event.offset));
                }
                assembled.push_str(text);
            }
        }
        Ok(vec![format!("{assembled:?}")])
    }
}
