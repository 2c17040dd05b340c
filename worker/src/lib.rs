//! The worker: where bytes from outside become checked values, and where results leave again.
#![forbid(unsafe_code)]

mod command;
mod computer;
mod estimate;
mod eval;
mod failure;
mod generate;
mod input;
mod job;
pub mod life;
mod local_run;
mod log;
mod merge;
pub mod net;
mod newest;
mod operator;
mod output;
mod prices;
mod progress;
mod redacted;
mod resume;
pub mod runpod;
mod serve;
pub mod service;
mod signals;
pub mod storage;
pub mod telling;
mod test_input;
mod this_machine;
mod train;
mod validate;
pub mod work;
mod worker;

use std::{env, io, process::ExitCode};

use brightrun_trainer::allocator;
use clap::{Parser, Subcommand};
use indicatif::MultiProgress;

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
    Train(train::Options),
    /// Goes on with a job that was interrupted.
    Resume(resume::Options),
    /// Says what is in a dataset, what is wrong with it and what would be trained on; trains nothing.
    Validate(validate::Options),
    /// Says what a job takes, how long and for how much, on every card and on this machine; trains nothing.
    Estimate(estimate::Options),
    /// Answers questions with a base model and, beside it, with an adapter, so that you see what training did.
    Generate(generate::Options),
    /// Measures loss and perplexity of a base model on a dataset, with an adapter and without.
    Eval(eval::Options),
    /// Writes base and adapter as one model, which any program loads.
    Merge(merge::Options),
    /// Takes jobs from RunPod's queue until it is told to go; what a container runs.
    Worker(worker::Options),
    /// Takes the same jobs over HTTP on this machine, as an endpoint of RunPod's does.
    Serve(serve::Options),
    /// Prints the table of a job's parameters in Markdown.
    Parameters {
        /// Prints their JSON schema instead.
        #[arg(long)]
        schema: bool,
    },
}

impl Command {
    /// What is said on the way goes to the person in front of a command, or to whoever runs a service.
    fn begin_log(&self, terminal: &MultiProgress) -> log::Guard {
        match self {
            Self::Worker(options) => log::for_a_service(options.log_level()),
            Self::Serve(_) => log::for_a_service(None),
            _ => log::for_people(terminal),
        }
    }
}

/// The program: reads the command line, does what it says, and gives the exit code.
pub fn run() -> ExitCode {
    // Who says how many heaps it should have gets those.
    if env::var_os("MALLOC_ARENA_MAX").is_none() {
        allocator::share_one_heap();
    }
    let arguments = Arguments::parse();
    let terminal = MultiProgress::new();
    let _said = arguments.command.begin_log(&terminal);
    match arguments.command {
        Command::Train(options) => {
            let outcome = train::train(&options, terminal);
            output::print(&outcome, options.json);
            ExitCode::from(outcome.exit_code())
        }
        Command::Resume(options) => {
            let outcome = resume::resume(&options, terminal);
            output::print(&outcome, options.json);
            ExitCode::from(outcome.exit_code())
        }
        Command::Validate(options) => {
            let verdict = validate::validate(&options, terminal);
            output::print_verdict(&verdict, options.json);
            ExitCode::from(verdict.exit_code())
        }
        Command::Worker(options) => match worker::work(options) {
            worker::Outcome::Gone => ExitCode::SUCCESS,
            worker::Outcome::Broken(why) => {
                eprintln!("The worker cannot work: {why}");
                ExitCode::FAILURE
            }
            worker::Outcome::Tested(tested) => tested.finish(),
        },
        Command::Serve(options) => match serve::serve(&options) {
            serve::Outcome::Gone => ExitCode::SUCCESS,
            serve::Outcome::Broken(why) => {
                eprintln!("The server cannot serve: {why}");
                ExitCode::FAILURE
            }
            serve::Outcome::Tested(tested) => tested.finish(),
        },
        Command::Estimate(options) => {
            let answer = estimate::estimate(&options, terminal);
            let text = answer.render(options.json);
            match answer {
                estimate::Answer::Planned(_) => output::write_to(&mut io::stdout().lock(), &text),
                _ if options.json => output::write_to(&mut io::stdout().lock(), &text),
                _ => output::write_to(&mut io::stderr().lock(), &text),
            }
            ExitCode::from(answer.exit_code())
        }
        Command::Generate(options) => generate::generate(&options, &terminal).finish(options.json),
        Command::Eval(options) => eval::eval(&options, &terminal).finish(options.json),
        Command::Merge(options) => merge::merge(&options, &terminal).finish(options.json),
        Command::Parameters { schema } => {
            let text = if schema { format!("{:#}\n", job::parameter_schema()) } else { job::parameter_table() };
            output::write_to(&mut io::stdout().lock(), &text);
            ExitCode::SUCCESS
        }
    }
}
