//! What serving costs: an idle worker and an idle server, the way of a job from its submission to its start, and what status
//! requests take from a job that trains.
//!
//! ```text
//! cargo run --release -p brightrun-benches --bin service -- --rounds 12
//! ```
//!
//! Training with and without requests is measured in turns on one and the same job; what is told is the ratio of both speeds in
//! each pair of windows. Whoever asks runs on the same machine, so its own time counts too.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brightrun_tests::platform::{Platform, Urls};
use clap::Parser;
use serde_json::{Value, json};

/// Ticks of `/proc/<number>/stat` in a second, on every Linux that there is.
const TICKS: f64 = 100.0;
/// A training step of the embedded model takes so little that a step is no measure of time by itself.
const STEPS: u64 = 1_000_000;

/// Measures what serving costs.
#[derive(Parser)]
struct Options {
    /// Pairs of windows with and without requests.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Length of a window in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Status requests a second.
    #[arg(long, default_value_t = 200)]
    requests: u32,
    /// Jobs whose way to their start is measured.
    #[arg(long, default_value_t = 50)]
    jobs: usize,
}

/// A process that ends with its owner.
struct Process(Child);

/// One connection to the server.
struct Client {
    stream: BufReader<TcpStream>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    idle_worker(&options, folder.path())?;
    let (server, address) = serve(folder.path())?;
    idle("server", &server, options.seconds)?;
    starts(&options, &address)?;
    while_training(&options, &address)?;
    println!("server after all that: {:.1} MB resident", server.resident()? / 1e6);
    Ok(())
}

fn binary() -> Result<PathBuf> {
    let path = env::current_exe()?.with_file_name("brightrun");
    ensure!(path.is_file(), "{} is missing; build the workspace", path.display());
    Ok(path)
}

fn idle_worker(options: &Options, folder: &Path) -> Result<()> {
    let platform = Platform::start()?;
    let volume = folder.join("volume");
    fs::create_dir(&volume)?;
    let mut command = Command::new(binary()?);
    command.args(["worker", "--volume"]).arg(&volume).envs(platform.environment(Urls::Full));
    let worker = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    idle("worker", &worker, options.seconds)
}

fn serve(folder: &Path) -> Result<(Process, String)> {
    let mut command = Command::new(binary()?);
    command.args(["serve", "--port", "0", "--max-queue", "100000", "--data"]).arg(folder.join("data"));
    command.env_remove("RUNPOD_ENDPOINT_ID").env("RUST_LOG", "info").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = Process(command.spawn()?);
    let mut said = BufReader::new(server.0.stderr.take().context("no standard error")?);
    let mut line = String::new();
    let address = loop {
        line.clear();
        ensure!(said.read_line(&mut line)? > 0, "the server ended");
        let Some((_, rest)) = line.split_once("http://") else { continue };
        break rest.split_whitespace().next().unwrap_or_default().to_owned();
    };
    // Nobody reads on; lines that nobody reads hold nothing up.
    thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    Ok((server, address))
}

fn idle(name: &str, process: &Process, seconds: u64) -> Result<()> {
    thread::sleep(Duration::from_secs(2));
    let (begin, before) = (Instant::now(), process.processor_seconds()?);
    thread::sleep(Duration::from_secs(seconds.max(10)));
    let share = (process.processor_seconds()? - before) / begin.elapsed().as_secs_f64();
    println!("idle {name}: {:.2} % of a core, {:.1} MB resident", 100.0 * share, process.resident()? / 1e6);
    Ok(())
}

/// From the moment before a job is sent to its answer that it is refused: its work, which is only to read it, is counted too.
fn starts(options: &Options, address: &str) -> Result<()> {
    let mut client = Client::connect(address)?;
    let mut times = Vec::new();
    for _ in 0..options.jobs {
        let begin = Instant::now();
        let id = client.run(&json!({ "input": { "dataset_url": 1 } }))?;
        while matches!(client.status(&id)?["status"].as_str(), Some("IN_QUEUE" | "IN_PROGRESS")) {
            thread::sleep(Duration::from_millis(1));
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("submission to start and end of an empty job: median {:.1} ms, worst {:.1} ms", at(0.5), at(1.0));
    Ok(())
}

fn while_training(options: &Options, address: &str) -> Result<()> {
    let mut client = Client::connect(address)?;
    let hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "max_steps": STEPS, "num_epochs": 1000, "eval_steps": STEPS, "batch_size": 4,
        "max_seq_length": 512, "lora_rank": 8, "save_minutes": 0,
    });
    let input = json!({ "job_id": "load", "dataset_url": "demo:conversations", "hyperparameters": hyperparameters });
    let id = client.run(&json!({ "input": input }))?;
    while client.step(&id)? == 0 {
        let status = client.status(&id)?;
        ensure!(status["status"] != "FAILED", "{}", status["error"]);
        thread::sleep(Duration::from_millis(50));
    }
    let mut ratios = Vec::new();
    for round in 0..options.rounds {
        let mut speeds = [0.0; 2];
        // In turns, so that neither is always first.
        for with in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (begin, first) = (Instant::now(), client.step(&id)?);
            let end = begin + Duration::from_secs(options.seconds);
            if with == 1 {
                client.ask_until(&id, options.requests, begin, end)?;
            } else {
                thread::sleep(end.saturating_duration_since(Instant::now()));
            }
            speeds[with] = (client.step(&id)? - first) as f64 / begin.elapsed().as_secs_f64();
        }
        println!("  {:.2} steps/s without, {:.2} with requests", speeds[0], speeds[1]);
        ratios.push(speeds[1] / speeds[0]);
    }
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios.first().copied().unwrap_or(1.0), ratios.last().copied().unwrap_or(1.0));
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or(1.0);
    println!(
        "{} status requests a second: training at {median:.3} of its speed ({least:.3} to {most:.3}, {} pairs)",
        options.requests, options.rounds
    );
    client.ask("POST", &format!("/cancel/{id}"), "")?;
    Ok(())
}

// === impl Process ===

impl Process {
    fn processor_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let words: Vec<f64> = rest.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Ok(words.iter().sum::<f64>() / TICKS)
    }

    fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? * 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === impl Client ===

impl Client {
    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("nobody answers at {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn ask(&mut self, method: &str, target: &str, body: &str) -> Result<Value> {
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut bytes) = (String::new(), 0);
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the server has closed the connection");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(length) = line.strip_prefix("content-length:") {
                bytes = length.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; bytes];
        self.stream.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }

    fn run(&mut self, body: &Value) -> Result<String> {
        let answer = self.ask("POST", "/run", &body.to_string())?;
        match answer["id"].as_str() {
            Some(id) => Ok(id.to_owned()),
            None => bail!("the job was not taken: {answer}"),
        }
    }

    fn status(&mut self, id: &str) -> Result<Value> {
        self.ask("GET", &format!("/status/{id}"), "")
    }

    fn step(&mut self, id: &str) -> Result<u64> {
        Ok(self.status(id)?["output"]["current_step"].as_u64().unwrap_or(0))
    }

    fn ask_until(&mut self, id: &str, rate: u32, begin: Instant, end: Instant) -> Result<()> {
        let mut asked = 0;
        loop {
            let due = begin + Duration::from_secs(1) * asked / rate;
            if due >= end {
                return Ok(());
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.status(id)?;
            asked += 1;
        }
    }
}
