//! `brightrun serve` as a process: killed, told to go, and what it refuses.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use brightrun_tests::child::Running;
use serde_json::{Value, json};

/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(900);
const KEY: &str = "0123456789abcdef";

struct Server {
    child: Running,
    address: SocketAddr,
    key: Option<&'static str>,
}

/// The program, with nothing of the environment that would change it.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    command.args(arguments);
    for name in [
        "BUCKET_NAME",
        "BUCKET_ENDPOINT_URL",
        "S3_BUCKET",
        "MODEL_PATH",
        "MODEL_PATHS",
        "BRIGHTRUN_API_KEY",
        "BRIGHTRUN_VOLUME",
        "RUNPOD_WEBHOOK_GET_JOB",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut command = program(&["serve", "--port", "0", "--data"]);
        Self::of(command.arg(data), None)
    }

    fn of(command: &mut Command, key: Option<&'static str>) -> Self {
        command.envs(key.map(|key| ("BRIGHTRUN_API_KEY", key)));
        let mut child = Running::start(command.stdout(Stdio::null()).stderr(Stdio::piped())).unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "it does not begin");
            if let Some((_, after)) = line.split_once("answering at http://") {
                break after.split(' ').next().unwrap().parse().unwrap();
            }
        };
        // Whoever is not listened to may stand still.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address, key }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let to = SocketAddr::from(([127, 0, 0, 1], self.address.port()));
        let mut stream = TcpStream::connect(to).unwrap();
        let key = self.key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{key}\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    fn run(&self, input: &Value) -> String {
        let (status, told) = self.ask("POST", "/v2/local/run", &json!({ "input": input }).to_string());
        assert_eq!(status, 200, "{told}");
        told["id"].as_str().unwrap().to_owned()
    }

    fn status(&self, id: &str) -> Value {
        self.ask("GET", &format!("/v2/local/status/{id}"), "").1
    }

    fn until(&self, id: &str, what: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.status(id);
            if what(&told) {
                return told;
            }
            assert!(Instant::now() < end && told["status"] != "FAILED", "{told}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_done(&self, id: &str) -> Value {
        self.until(id, |told| told["status"] == "COMPLETED")
    }

    fn until_step(&self, id: &str, step: u64) {
        self.until(id, |told| told["output"]["current_step"].as_u64() >= Some(step));
    }

    fn kill(self) {
        self.child.kill_now().unwrap();
    }

    fn terminate(self) -> ExitStatus {
        self.child.terminate().unwrap()
    }
}

fn job(name: &str, changes: Value) -> Value {
    let mut hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "max_steps": 300, "num_epochs": 1000, "eval_steps": 50, "batch_size": 1,
        "max_seq_length": 256, "lora_rank": 4, "save_steps": 5, "learning_rate": 0.01,
    });
    hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({ "job_id": name, "dataset_url": "demo:conversations", "hyperparameters": hyperparameters })
}

fn adapter(data: &Path, name: &str) -> Vec<u8> {
    fs::read(data.join("jobs").join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_server_that_is_killed_again_and_again_loses_nothing() {
    let (data, unbroken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(unbroken.path());
    let id = server.run(&job("j", json!({})));
    server.until_done(&id);
    server.kill();

    let server = Server::start(data.path());
    let id = server.run(&job("j", json!({})));
    let waiting = server.run(&job("w", json!({ "max_steps": 3 })));
    server.until_step(&id, 20);
    server.kill();
    let server = Server::start(data.path());
    server.until_step(&id, 80);
    assert_eq!(server.status(&waiting)["status"], "IN_QUEUE");
    server.kill();
    let server = Server::start(data.path());
    let told = server.until_done(&id);
    assert_eq!((&told["retries"], &told["output"]["current_step"]), (&json!(2), &json!(300)));
    server.until_done(&waiting);
    server.kill();
    // What was answered is answered again.
    let server = Server::start(data.path());
    assert_eq!(server.status(&id), told);
    assert!(server.terminate().success());
    assert_eq!(adapter(data.path(), "j"), adapter(unbroken.path(), "j"));
}

#[test]
fn a_server_that_goes_while_it_trains_saves_its_job_and_goes_on_later() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let id = server.run(&job("j", json!({ "max_steps": 400, "save_steps": 100_000 })));
    server.until_step(&id, 10);
    assert!(server.terminate().success());
    let saved = fs::read_dir(data.path().join("jobs/j/checkpoints")).unwrap().count();
    assert!(saved > 0, "nothing is saved");
    assert!(!data.path().join("jobs/j/result.json").exists());
    let server = Server::start(data.path());
    let told = server.until_done(&id);
    assert!(told.get("retries").is_none(), "{told}");
    assert!(server.terminate().success());
}

#[test]
fn beyond_this_machine_it_wants_a_key() {
    let data = tempfile::tempdir().unwrap();
    let outside = |key: Option<&str>| {
        let mut command = program(&["serve", "--host", "0.0.0.0", "--port", "0", "--data"]);
        command.arg(data.path()).envs(key.map(|key| ("BRIGHTRUN_API_KEY", key)));
        command
    };
    for wrong in [None, Some(""), Some("short")] {
        let Output { status, stderr, .. } = outside(wrong).output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(1) && said.contains("BRIGHTRUN_API_KEY"), "{said}");
    }
    let mut server = Server::of(&mut outside(None), Some(KEY));
    assert_eq!(server.ask("GET", "/health", "").0, 200);
    server.key = None;
    assert_eq!(server.ask("GET", "/health", "").0, 401);
    assert!(server.terminate().success());
}

#[test]
fn a_folder_or_port_that_somebody_has_is_named() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let port = server.address.port().to_string();
    let other = tempfile::tempdir().unwrap();
    for (port, folder, says) in [("0", data.path(), "another brightrun serve"), (&port, other.path(), "--port")] {
        let Output { status, stderr, .. } = program(&["serve", "--port", port, "--data"]).arg(folder).output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(1) && said.contains(says), "{said}");
    }
    assert!(server.terminate().success());
}

#[test]
fn without_work_it_takes_next_to_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let of_process = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", server.child.id())).unwrap();
    let ticks = || {
        let stat = of_process("stat");
        let (_, words) = stat.rsplit_once(')').unwrap();
        words.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = ticks();
    thread::sleep(Duration::from_secs(5));
    // A tick is a hundredth of a second: one per cent of five seconds.
    assert!(ticks() - before <= 5, "{} ticks", ticks() - before);
    let status = of_process("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(kilobytes < 60_000, "{kilobytes} kB");
    assert!(server.terminate().success());
}

#[test]
fn one_job_is_run_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let Output { status, stdout, stderr } = program(arguments).current_dir(folder.path()).output().unwrap();
        let told: Value = serde_json::from_slice(&stdout).unwrap_or_default();
        (status.code(), told, String::from_utf8(stderr).unwrap())
    };
    let good = json!({ "id": "mine", "input": job("good", json!({ "max_steps": 2 })) });
    fs::write(folder.path().join("job.json"), good.to_string()).unwrap();
    let (code, told, said) = run(&["serve", "--test_input", "job.json"]);
    assert_eq!((code, &told["id"], &told["status"]), (Some(0), &json!("mine"), &json!("COMPLETED")), "{said}");
    assert_eq!(told["output"]["status"], "success");
    assert!(folder.path().join("brightrun-serve/jobs/good/result.json").is_file());
    let (code, told, _) = run(&["worker", "--test_input", r#"{"input": {"dataset_url": 5}}"#]);
    assert_eq!((code, &told["id"], &told["status"]), (Some(1), &json!("local_test"), &json!("FAILED")));
    assert!(told["error"].as_str().unwrap().contains("dataset_url"), "{told}");
    // Outside the platform, a file of this name is what a worker does.
    let (code, _, said) = run(&["worker"]);
    assert!(code == Some(1) && said.contains("test_input.json"), "{said}");
    fs::rename(folder.path().join("job.json"), folder.path().join("test_input.json")).unwrap();
    let (code, told, said) = run(&["worker", "--rp_log_level", "ERROR"]);
    assert_eq!((code, &told["id"], said.as_str()), (Some(0), &json!("mine"), ""));
    let (code, _, said) = run(&["worker", "--test_input", "nowhere.json"]);
    assert!(code == Some(1) && said.contains("nowhere.json"), "{said}");
}

#[test]
fn the_sdks_flags_of_a_worker_serve() {
    let data = tempfile::tempdir().unwrap();
    let mut command = program(&[
        "worker",
        "--rp_serve_api",
        "--rp_api_port",
        "0",
        "--rp_api_host",
        "localhost",
        "--rp_api_concurrency",
        "2",
        "--rp_debugger",
        "--volume",
    ]);
    let server = Server::of(command.arg(data.path()), None);
    assert_eq!(server.ask("POST", "/runsync", r#"{"input": {}}"#).1["status"], "FAILED");
    assert!(data.path().join("brightrun/serve/queue.sqlite").is_file());
    assert!(server.terminate().success());
}
