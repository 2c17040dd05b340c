//! `platform`: the platform simulator for people and for workers of other makes. It prints the environment a worker is
//! started with, then does what the lines of its standard input say; `help` lists them. Times are milliseconds.
#![forbid(unsafe_code)]

use std::{
    io::{BufRead, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use brightrun_tests::platform::{
    Extent, Fault, HeldTake, Options, Platform, Route, Seen, Urls, most_within, order_problems,
};
use clap::Parser;
use serde_json::Value;

/// What may be said on standard input.
const HELP: &str = "\
submit INPUT              queue a job with this JSON as its input
body BODY                 queue what a client posts to /run: {\"id\", \"input\", \"policy\", ...}
cancel ID | again ID      call a job off | give it out once more
status ID | jobs          a job as its client sees it | all jobs
wait ID MS                until a job has ended
fault ROUTE KIND N        the next N requests (0: until mended) go wrong; KIND is a status, dropped, closed, lost
                          (done, but no answer), cut, nojson, html, empty, noid or slow:MS
mend ROUTE                no more of it
hold MS | release [INPUT] wait for a take and answer it only when told: with a job, or with none
sleep MS                  do nothing
seen | rate ROUTE         all requests | the most within a second
problems [MS]             what was wrong with the requests; MS: the least time between progress
quit";

/// Speaks the server's side of the serverless worker protocol on this machine.
#[derive(Parser)]
struct Arguments {
    /// How long a take without a job is held.
    #[arg(long, default_value_t = 5_000)]
    hold: u64,
    /// How long a job that no ping lists stays with its worker.
    #[arg(long, default_value_t = 40_000)]
    redispatch: u64,
    /// How often a worker is to ping.
    #[arg(long, default_value_t = 10_000)]
    ping: u64,
    /// Longest result.
    #[arg(long, default_value_t = 10_000_000)]
    max_body: usize,
    /// Addresses: full, bare, gpu-name, example-names or hub.
    #[arg(long, default_value = "full")]
    urls: String,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let urls = match arguments.urls.as_str() {
        "full" => Urls::Full,
        "bare" => Urls::Bare,
        "gpu-name" => Urls::GpuName,
        "example-names" => Urls::ExampleNames,
        "hub" => Urls::Hub,
        other => bail!("--urls is full, bare, gpu-name, example-names or hub, not {other}"),
    };
    let hold = Duration::from_millis(arguments.hold);
    let platform = Platform::start_with(Options {
        take_hold: hold,
        stop_hold: hold,
        redispatch_after: Some(Duration::from_millis(arguments.redispatch)),
        max_body_bytes: arguments.max_body,
        ping_milliseconds: arguments.ping,
    })?;
    for (name, value) in platform.environment(urls) {
        println!("export {name}='{value}'");
    }
    println!("ready");
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut held = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim() == "quit" {
            break;
        }
        match waiting.block_on(command(&platform, &mut held, &line)) {
            Ok(text) => println!("{text}"),
            Err(error) => println!("error: {error:#}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn command(platform: &Platform, held: &mut Option<HeldTake>, line: &str) -> Result<String> {
    let (verb, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let words: Vec<&str> = rest.split_whitespace().collect();
    Ok(match (verb, &words[..]) {
        ("submit", _) => platform.submit(serde_json::from_str(rest)?),
        ("body", _) => {
            let body: Value = serde_json::from_str(rest)?;
            let id = body.get("id").and_then(Value::as_str);
            if !body.is_object() || id.is_some_and(|id| platform.job(id).is_some()) {
                bail!("a job is an object with an id of its own");
            }
            platform.submit_body(body)
        }
        ("cancel", [job]) => platform.cancel(job).context("no such job")?.name().to_owned(),
        ("again", [job]) => {
            platform.job(job).context("no such job")?;
            platform.deliver_again(job);
            "queued".to_owned()
        }
        ("status", [job]) => platform.job(job).context("no such job")?.json().to_string(),
        ("jobs", []) => lines(platform.jobs().iter().map(|job| job.json().to_string())),
        ("wait", [job, patience]) => {
            let ended = |platform: &Platform| platform.job(job).filter(|view| view.status.ended());
            platform.until(milliseconds(patience)?, &format!("end of job {job}"), ended).await?.json().to_string()
        }
        ("fault", [route, kind, times]) => {
            let extent = match times.parse()? {
                0 => Extent::UntilMended,
                times => Extent::Times(times),
            };
            platform.fault(route_named(route)?, fault(kind)?, extent);
            "planted".to_owned()
        }
        ("mend", [route]) => {
            platform.mend(route_named(route)?);
            "mended".to_owned()
        }
        ("hold", [patience]) => {
            let take = held.insert(platform.hold_take(milliseconds(patience)?).await?);
            format!("holds request {}", take.number())
        }
        ("release", _) => {
            let input = (!rest.is_empty()).then(|| serde_json::from_str(rest)).transpose()?;
            let take = held.take().context("no take is held")?;
            match input {
                Some(input) => take.release_with(input),
                None => {
                    take.release_empty();
                    "released".to_owned()
                }
            }
        }
        ("sleep", [pause]) => {
            tokio::time::sleep(milliseconds(pause)?).await;
            "slept".to_owned()
        }
        ("seen", []) => lines(platform.seen().iter().map(Seen::line)),
        ("rate", [route]) => most_within(&platform.seen(), route_named(route)?, Duration::from_secs(1)).to_string(),
        ("problems", []) => lines(platform.problems().into_iter()),
        ("problems", [spacing]) => {
            let spaced = order_problems(&platform.seen(), milliseconds(spacing)?);
            let mut problems = platform.problems();
            problems.extend(spaced.into_iter().filter(|problem| !problems.contains(problem)).collect::<Vec<_>>());
            lines(problems.into_iter())
        }
        ("help", _) => HELP.to_owned(),
        _ => bail!("not understood; `help` lists what is"),
    })
}

fn fault(kind: &str) -> Result<Fault> {
    Ok(match kind {
        "dropped" => Fault::dropped(),
        "closed" => Fault::closed(),
        "lost" => Fault::dropped().after_effect(),
        "cut" => Fault::cut(),
        "nojson" => Fault::no_json(),
        "html" => Fault::html(),
        "empty" => Fault::empty(),
        "noid" => Fault::job_without_id(),
        _ => match kind.strip_prefix("slow:") {
            Some(pause) => Fault::slow(milliseconds(pause)?),
            None => Fault::status(kind.parse().context("a fault is a status or one of the kinds `help` lists")?),
        },
    })
}

fn route_named(name: &str) -> Result<Route> {
    let names = || Route::ALL.map(Route::name).join(", ");
    Route::named(name).with_context(|| format!("a route is one of {}", names()))
}

fn milliseconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_millis(text.parse().context("a time is a number of milliseconds")?))
}

/// One a line, and how many.
fn lines(all: impl ExactSizeIterator<Item = String>) -> String {
    let count = all.len();
    all.map(|line| line + "\n").chain([format!("({count})")]).collect()
}
