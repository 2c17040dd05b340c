//! What `merge`, `generate` and `eval` have in common: what they are given, how they end and how that is told.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use brightrun_trainer::{demo, weights::BasePrecision};
use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    failure, input,
    job::{self, BaseModel, Dataset},
    output,
};

/// A short name for the demo's base model.
const DEMO: &str = "demo";

/// How a command ended.
pub(crate) enum Ended<T> {
    /// It did what it was asked for.
    Done(T),
    /// The command is wrong; nothing was begun.
    Refused(Vec<String>),
    /// It failed on the way.
    Failed(String),
}

/// A result, for programs and for people.
pub(crate) trait Shown {
    /// As JSON, without `status`.
    fn json(&self) -> Value;

    /// As text.
    fn text(&self) -> String;
}

/// How the base is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 4 bits, as it was trained on.
    Nf4,
    /// As it is stored.
    Full,
}

/// A bar on a terminal; elsewhere nothing, for the log says what begins.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
}

// === impl Ended ===

impl<T: Shown> Ended<T> {
    /// Prints the result on standard output, or what went wrong on standard error (as JSON: on standard output), and gives
    /// the exit code. 0: done; 1: failed; 2: refused.
    pub(crate) fn finish(&self, as_json: bool) -> ExitCode {
        let text = if as_json { format!("{:#}\n", self.json()) } else { self.text() };
        match (as_json, self) {
            (true, _) | (_, Self::Done(_)) => output::write_to(&mut io::stdout().lock(), &text),
            _ => output::write_to(&mut io::stderr().lock(), &text),
        }
        ExitCode::from(match self {
            Self::Done(_) => 0,
            Self::Failed(_) => 1,
            Self::Refused(_) => 2,
        })
    }

    fn json(&self) -> Value {
        match self {
            Self::Done(result) => {
                let mut all = json!({ "status": "success" });
                if let (Some(all), Value::Object(result)) = (all.as_object_mut(), result.json()) {
                    all.extend(result);
                }
                all
            }
            Self::Refused(problems) => {
                json!({ "status": "failed", "error": problems.join("; "), "problems": problems })
            }
            Self::Failed(error) => json!({ "status": "failed", "error": error }),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Done(result) => result.text(),
            Self::Refused(problems) => format!("The command cannot be carried out:\n  {}\n", problems.join("\n  ")),
            Self::Failed(error) => format!("Failed: {error}\n"),
        }
    }
}

/// Carries out what was understood.
pub(crate) fn run<R, T: Shown>(
    understood: Result<R, Vec<String>>,
    carry_out: impl FnOnce(R) -> anyhow::Result<T>,
) -> Ended<T> {
    match understood.map(carry_out) {
        Ok(Ok(result)) => Ended::Done(result),
        Ok(Err(error)) => Ended::Failed(failure::told(&error)),
        Err(problems) => Ended::Refused(problems),
    }
}

// === impl Precision ===

impl Precision {
    pub(crate) fn of_base(self) -> BasePrecision {
        match self {
            Self::Nf4 => BasePrecision::nf4(),
            Self::Full => BasePrecision::Full,
        }
    }
}

/// The base that a command names, or what is missing.
pub(crate) fn base(text: &str, needs_tokenizer: bool, problems: &mut Vec<String>) -> BaseModel {
    if [DEMO, demo::BASE_MODEL].contains(&text) {
        return BaseModel::Demo;
    }
    let folder = PathBuf::from(text);
    for file in ["config.json"].into_iter().chain(needs_tokenizer.then_some("tokenizer.json")) {
        if !folder.join(file).is_file() {
            problems
                .push(format!("--base {text}: there is no {file} in it; name the folder of a base model, or {DEMO:?}"));
        }
    }
    BaseModel::Folder(folder)
}

/// The dataset that a command names, or what is wrong with it.
pub(crate) fn dataset(argument: &str, text: &str, problems: &mut Vec<String>) -> Option<Dataset> {
    let dataset = job::dataset(text).map_err(|message| problems.push(format!("{argument} {message}"))).ok()?;
    problems.extend(dataset.check(argument).map(|problem| problem.to_string()));
    Some(dataset)
}

/// Notes what is missing of an adapter's folder.
pub(crate) fn check_adapter(folder: &Path, problems: &mut Vec<String>) {
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        if !folder.join(file).is_file() {
            let message = "there is no such file; name the folder of an adapter, as brightrun train leaves it";
            problems.push(format!("--adapter {}: {file}: {message}", folder.display()));
        }
    }
}

/// The folder for what is no file of this machine yet.
pub(crate) fn inputs(cache: &Path) -> anyhow::Result<PathBuf> {
    let folder = cache.join("inputs");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// The folder of a base model; the demo's is made in the cache.
pub(crate) fn base_folder(model: &BaseModel, cache: &Path) -> anyhow::Result<PathBuf> {
    match model {
        BaseModel::Folder(folder) => Ok(folder.clone()),
        BaseModel::Demo => Ok(input::base_model(model, &inputs(cache)?)?.0),
    }
}

/// What a model said, for a terminal: nothing in it may move the cursor or change colours.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

// === impl Bar ===

impl Bar {
    /// A bar with indicatif's placeholders.
    pub(crate) fn new(terminal: &MultiProgress, template: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = terminal.add(ProgressBar::no_length());
            // The template is a constant; should it ever be wrong, indicatif's own bar is as good.
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { bar }
    }

    /// So much of so much is done.
    pub(crate) fn set(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_says_cannot_steer_a_terminal() {
        assert_eq!(printable("a\n\tb\u{1b}[2J\r\u{9b}c\u{7}"), "a\n\tb\u{fffd}[2J\u{fffd}\u{fffd}c\u{fffd}");
    }

    #[test]
    fn a_base_is_the_demo_or_a_folder_with_what_is_needed() {
        let mut problems = Vec::new();
        assert_eq!(base("demo", true, &mut problems), BaseModel::Demo);
        assert_eq!(base("brightrun/demo-moe", true, &mut problems), BaseModel::Demo);
        assert!(problems.is_empty());
        base("nowhere", true, &mut problems);
        check_adapter(Path::new("nowhere"), &mut problems);
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[1].contains("--base nowhere: there is no tokenizer.json"), "{problems:?}");
    }
}
