//! The worker: where bytes from outside become checked values, and where results leave again.
#![forbid(unsafe_code)]

mod command;
mod eval;
mod generate;
mod input;
mod job;
mod merge;
mod output;
mod progress;
mod redacted;
pub mod storage;
mod train;
mod validate;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;

use progress::LogWriter;

pub use redacted::Redacted;

/// Fine-tunes Qwen MoE models with 4-bit QLoRA.
#[derive(Parser)]
#[command(name = "brightrun", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a job and leaves an adapter and a loss curve.
    Train {
        /// The job: a JSON file of the form {"input": {"dataset_url": ..., "hyperparameters": {...}}}.
        job: PathBuf,
        /// Where the files go [default: brightrun-output/<job_id>].
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Where tokenised datasets are kept for the next run.
        #[arg(long, value_name = "DIR", default_value = train::CACHE)]
        cache: PathBuf,
        /// Prints the result as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        fetching: input::FetchOptions,
    },
    /// Says what is in a dataset, what is wrong with it and what would be trained on; trains nothing.
    Validate(validate::Options),
    /// Answers questions with a base model and, beside it, with an adapter, so that you see what training did.
    Generate(generate::Options),
    /// Measures loss and perplexity of a base model on a dataset, with an adapter and without.
    Eval(eval::Options),
    /// Writes base and adapter as one model, which any program loads.
    Merge(merge::Options),
    /// Prints the table of a job's parameters in Markdown.
    Parameters,
}

/// The program: reads the command line, does what it says, and gives the exit code.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let terminal = MultiProgress::new();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let writer = LogWriter::new(terminal.clone());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(move || writer.clone())
        .init();
    match arguments.command {
        Command::Train { job, output, cache, json, fetching } => {
            let outcome = train::train(&job, output, &cache, &fetching, terminal);
            output::print(&outcome, json);
            ExitCode::from(outcome.exit_code())
        }
        Command::Validate(options) => {
            let verdict = validate::validate(&options, terminal);
            output::print_verdict(&verdict, options.json);
            ExitCode::from(verdict.exit_code())
        }
        Command::Generate(options) => generate::generate(&options, &terminal).finish(options.json),
        Command::Eval(options) => eval::eval(&options, &terminal).finish(options.json),
        Command::Merge(options) => merge::merge(&options, &terminal).finish(options.json),
        Command::Parameters => {
            output::write_to(&mut io::stdout().lock(), &job::parameter_table());
            ExitCode::SUCCESS
        }
    }
}
