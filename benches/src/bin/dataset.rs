//! `dataset`: how fast a dataset file becomes tokens on disk, and how much memory that takes.
//!
//! Without `--file` a deterministic file of conversations is written to a temporary folder first. The model folder needs
//! `tokenizer.json` and a chat template, no weights. One JSON object goes to standard output: tokens and megabytes per second
//! (reading, hashing, tokenising, writing, checking, all of it), the time of a second run that finds the store, and
//! the peak of resident memory above what the tokenizer takes (Linux).
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use brightrun_benches::resident;
use brightrun_kernels::dropout::{SPLITMIX_STEP, splitmix};
use brightrun_trainer::dataset::{
    finding::{FindingKind, Severity},
    prepare::{PrepareOptions, TextModel, prepare},
};
use clap::Parser;
use serde_json::json;

const MB: f64 = 1e6;

/// Measures how fast a dataset file is prepared.
#[derive(Parser)]
struct Arguments {
    /// Folder with tokenizer.json and the chat template.
    #[arg(long, required_unless_present = "write")]
    model: Option<PathBuf>,
    /// Dataset to prepare instead of a generated one.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Size of the generated dataset in megabytes.
    #[arg(long, default_value_t = 200)]
    megabytes: u64,
    /// Writes the generated dataset here and does nothing else, for other programs to be measured on.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Most tokens of a document.
    #[arg(long, default_value_t = 2048)]
    max_length: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.write {
        return generate(path, arguments.megabytes * MB as u64);
    }
    let model = arguments.model.as_deref().context("--model is needed")?;
    let folder = tempfile::tempdir()?;
    let file = match &arguments.file {
        Some(file) => file.clone(),
        None => {
            let file = folder.path().join("conversations.jsonl");
            generate(&file, arguments.megabytes * MB as u64)?;
            file
        }
    };
    measure(&file, model, arguments.max_length, &folder.path().join("cache"))
}

fn measure(file: &Path, model: &Path, max_length: usize, cache: &Path) -> Result<()> {
    let options = PrepareOptions { max_length, train_on_prompt: false, learn_every_turn: false };
    let before_tokenizer = resident::current_mib();
    let model = &TextModel::load(model)?;
    let tokenizer = resident::current_mib();
    // 5 sets the high-water mark back to what is resident now (man 5 proc); elsewhere the peak is that of the process.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let watch = |_, _| ControlFlow::Continue(());
    let start = Instant::now();
    let prepared = prepare(file, model, &options, cache, &watch)?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = resident::peak_mib();
    let fatal = prepared.facts.findings.count_of(Severity::Fatal);
    ensure!(fatal == 0, "{} has {fatal} fatal findings; `brightrun validate` lists them", file.display());
    let start = Instant::now();
    let again = prepare(file, model, &options, cache, &watch)?;
    let again_seconds = start.elapsed().as_secs_f64();
    ensure!(again.reused && again.facts == prepared.facts, "the second run did not find what the first one left");
    let facts = &prepared.facts;
    let line = json!({
        "megabytes": facts.bytes as f64 / MB,
        "examples": facts.examples,
        "tokens": facts.tokens,
        "target_tokens": facts.target_tokens,
        "history_cut": facts.findings.count(FindingKind::HistoryCut),
        "duplicates": facts.findings.count(FindingKind::Duplicate),
        "threads": std::thread::available_parallelism().map_or(1, usize::from),
        "seconds": seconds,
        "tokens_per_second": facts.tokens as f64 / seconds,
        "megabytes_per_second": facts.bytes as f64 / MB / seconds,
        "seconds_when_reused": again_seconds,
        "tokenizer_mib": tokenizer.zip(before_tokenizer).map(|(with, without)| with - without),
        "peak_mib_above_tokenizer": peak.zip(tokenizer).map(|(peak, tokenizer)| peak - tokenizer),
    });
    println!("{line}");
    Ok(())
}

/// Words that sentences are made of, the frequent ones first.
const WORDS: &str = "the of and to in a is that for it was on are as with they be at one have this from by hot but some what \
    there we can out other were all your when up use word how said an each she which do their time if will way about many \
    then them would write like so these her long make thing see him two has look more day could go come did my sound no most \
    number who over know water than call first people may down side been now find any new work part take get place made live \
    where after back little only round man year came show every good me give our under name very through just form much great \
    think say help low line before turn cause same mean differ move right boy old too does tell sentence set three want air \
    well also play small end put home read hand port large spell add even land here must big high such follow act why ask men \
    change went light kind off need house picture try us again animal point mother world near build self earth father account \
    savings budget mortgage anxiety confidence retirement compound interest investment conversation feeling patient";
/// Beginnings and ends that make rarer words of them.
const BEGINNINGS: [&str; 8] = ["", "", "", "", "re", "un", "over", "inter"];
const ENDS: [&str; 10] = ["", "", "", "", "", "s", "ing", "ed", "ly", "ation"];
/// Text that is not English prose.
const OTHERS: [&str; 14] = [
    "$1,250.00",
    "401(k)",
    "größer",
    "naïve",
    "façade",
    "日本語",
    "прибыль",
    "🙂",
    "don't",
    "you're",
    "e.g.",
    "https://example.org/a?b=1",
    "```\nfn main() {\n    let x = 42;\n}\n```",
    "— “quoted” …",
];

/// Numbers that are the same on every machine.
struct Numbers(u64);

// === impl Numbers ===

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        let bits = splitmix(self.0);
        self.0 = self.0.wrapping_add(SPLITMIX_STEP);
        ((u128::from(bits) * bound as u128) >> 64) as usize
    }

    /// Small numbers far more often than large ones, as words are distributed.
    fn rank(&mut self, bound: usize) -> usize {
        let first = self.below(bound);
        self.below(first + 1)
    }
}

/// Writes conversations of one to twelve exchanges, some of them longer than 2048 tokens.
fn generate(path: &Path, bytes: u64) -> Result<()> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut numbers = Numbers(2026);
    let mut file = BufWriter::new(File::create(path)?);
    let mut written = 0;
    while written < bytes {
        let mut messages = vec![json!({ "role": "system", "content": message(&mut numbers, &words, 60) })];
        for _ in 0..1 + numbers.rank(12) {
            messages.push(json!({ "role": "user", "content": message(&mut numbers, &words, 120) }));
            messages.push(json!({ "role": "assistant", "content": message(&mut numbers, &words, 320) }));
        }
        let line = json!({ "messages": messages }).to_string() + "\n";
        file.write_all(line.as_bytes())?;
        written += line.len() as u64;
    }
    file.flush()?;
    Ok(())
}

/// Sentences of up to so many words.
fn message(numbers: &mut Numbers, words: &[&str], most: usize) -> String {
    let mut text = String::new();
    let mut begins = true;
    for _ in 0..4 + numbers.below(most) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push(' ');
        }
        if numbers.below(40) == 0 {
            text.push_str(OTHERS[numbers.below(OTHERS.len())]);
        } else {
            let word = words[numbers.rank(words.len())];
            let rare = numbers.below(6) == 0;
            let word = match rare {
                true => [BEGINNINGS[numbers.below(8)], word, ENDS[numbers.below(10)]].concat(),
                false => word.to_owned(),
            };
            let (first, rest) = word.split_at(1);
            text.push_str(&if begins { first.to_uppercase() } else { first.to_owned() });
            text.push_str(rest);
        }
        begins = numbers.below(12) == 0;
        match (begins, numbers.below(20)) {
            (true, 0) => text.push_str("!\n\n"),
            (true, 1 | 2) => text.push('?'),
            (true, _) => text.push('.'),
            (false, 0 | 1) => text.push(','),
            _ => {}
        }
    }
    text
}
