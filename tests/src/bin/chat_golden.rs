//! `chat_golden --tokenizer TOKENIZER.json DIR…`: one JSON line per case of each directory's `chat_goldens.json`, with what
//! agrees with the numbers of transformers and TRL and what differs; exits with 1 where anything differs, with 2 where a
//! directory cannot be read.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

/// Compares chat templates, token ids and loss masks with goldens made by transformers and TRL.
#[derive(Parser)]
struct Arguments {
    /// The tokenizer the goldens were made with. Special tokens are read beside it, unless DIR has a
    /// tokenizer_config.json.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Directories with chat_goldens.json and the templates it names.
    #[arg(required = true)]
    directories: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut worst = 0;
    for directory in &arguments.directories {
        match brightrun_tests::chat_golden::compare(directory, &arguments.tokenizer) {
            Ok(reports) => {
                for report in reports {
                    println!("{}", report.json());
                    worst = worst.max(u8::from(!report.passed()));
                }
            }
            Err(error) => {
                println!("{}", json!({ "directory": directory, "ok": false, "error": format!("{error:#}") }));
                worst = 2;
            }
        }
    }
    ExitCode::from(worst)
}
