//! `golden DIR…`: one JSON line per fixture directory with every measured difference from the numbers of the Python
//! stack; exits with 1 where a tolerance is passed, with 2 where a directory cannot be measured.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

/// Compares brightrun with fixtures made by transformers, PEFT and bitsandbytes.
#[derive(Parser)]
struct Arguments {
    /// Fixture directories.
    #[arg(required = true)]
    directories: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let mut worst = 0;
    for dir in Arguments::parse().directories {
        let name = dir.display().to_string();
        let (line, code) = match brightrun_tests::golden::measure(&dir) {
            Ok(report) => (report.json(&name), u8::from(!report.passed())),
            Err(error) => (json!({ "fixture": name, "ok": false, "error": format!("{error:#}") }), 2),
        };
        println!("{line}");
        worst = worst.max(code);
    }
    ExitCode::from(worst)
}
