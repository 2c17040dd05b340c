//! Secrets in every place where a job or the environment of `brightrun worker` holds any, looked for in everything that comes
//! out of the process: what it prints, what it sends, and what it leaves on its volume.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use brightrun_tests::{
    child::Running,
    faults::{FaultServer, Reply, Seen},
    platform::{KEY, Options, Platform, Status, Urls},
};
use serde_json::{Value, json};

/// What every planted secret begins with.
const MARK: &str = "S3CR3T";
/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(900);
/// What opens a store, a callback or a door; and what other programs keep in an environment.
const ENVIRONMENT: [(&str, &str); 9] = [
    ("BRIGHTRUN_CALLBACK_SECRET", "S3CR3Tcallback0123456789"),
    ("BRIGHTRUN_API_KEY", "S3CR3Tdoor0123456789"),
    ("SUPABASE_SERVICE_ROLE_KEY", "S3CR3Tsupabase0123456789"),
    ("AWS_ACCESS_KEY_ID", "S3CR3Tawsid0123456789"),
    ("AWS_SECRET_ACCESS_KEY", "S3CR3Taws0123456789"),
    ("AWS_SESSION_TOKEN", "S3CR3Tsession0123456789"),
    ("RUNPOD_API_KEY", "S3CR3Trunpod0123456789"),
    ("RUNPOD_ENDPOINT_SECRET", "S3CR3Tendpoint0123456789"),
    ("HF_TOKEN", "S3CR3Thf0123456789"),
];
/// The operator's bucket, whose key is another one.
const BUCKET: [(&str, &str); 4] = [
    ("BUCKET_NAME", "results"),
    ("S3_REGION", "us-east-1"),
    ("BUCKET_ACCESS_KEY_ID", "S3CR3Tbucketid0123456789"),
    ("BUCKET_SECRET_ACCESS_KEY", "S3CR3Tbucket0123456789"),
];

/// A worker, its platform, and a server for everything else that it speaks to.
struct Bench {
    platform: Platform,
    server: FaultServer,
    volume: tempfile::TempDir,
    printed: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let options = Options { ping_milliseconds: 100, ..Options::default() };
        Self {
            platform: Platform::start_with(options).unwrap(),
            server: FaultServer::start().await.unwrap(),
            volume: tempfile::tempdir().unwrap(),
            printed: tempfile::tempdir().unwrap(),
        }
    }

    fn start(&self, more: &[(&str, &str)]) -> Running {
        let print = |name| File::create(self.printed.path().join(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
        command.args(["worker", "--allow-http", "--allow-private-addresses", "--volume"]).arg(self.volume.path());
        command.env_remove("MODEL_PATH").envs(self.platform.environment(Urls::Full)).envs(ENVIRONMENT);
        command
            .env("SUPABASE_URL", self.server.url(""))
            .env("S3_ENDPOINT", self.server.url(""))
            .env("AWS_REGION", "us-east-1");
        command.env("RUST_LOG", "trace").env("BRIGHTRUN_HOLD_SECONDS", "0").envs(more.iter().copied());
        Running::start(command.stdout(print("stdout")).stderr(print("stderr"))).unwrap()
    }

    /// A job with a secret wherever it has room for one.
    fn job(&self, name: &str, dataset: &str) -> Value {
        let link = |path: &str| {
            self.server.url(&format!("{path}?token={MARK}query0123456789&X-Amz-Signature={MARK}signature01"))
        };
        json!({
            "input": {
                "job_id": name, "dataset_url": link(dataset), "callback_url": link("/callback"),
                "hyperparameters": {
                    "base_model": "brightrun/demo-moe", "max_steps": 2, "batch_size": 1, "max_seq_length": 256, "lora_rank": 4,
                    "wandb_api_key": "S3CR3Twandb0123456789",
                },
                "upload_urls": { "adapter_model.safetensors": link("/put"), "adapter_config.json": link("/put") },
                "gpu_config": { "num_gpus": 1, "token": "S3CR3Tgpu0123456789" },
                "hf_token": "S3CR3Tinput0123456789", "secrets": { "key": ["S3CR3Tdeep0123456789"] },
            },
            "webhook": link("/webhook"),
        })
    }

    /// The same with a store of its own.
    fn job_with_store(&self, name: &str, endpoint: &str) -> Value {
        let mut job = self.job(name, "/data.jsonl");
        job["s3Config"] = json!({
            "accessId": "S3CR3Tid0123456789", "accessSecret": "S3CR3Taccess0123456789", "bucketName": "b",
            "endpointUrl": endpoint,
        });
        job
    }

    async fn ends(&self, job: Value, status: Status) -> String {
        let id = self.platform.submit_body(job);
        let view = self.platform.until_status(&id, status, PATIENCE).await.unwrap();
        view.error.unwrap_or_default()
    }

    /// Looks through everything.
    fn look(&self) {
        for name in ["stdout", "stderr"] {
            let printed = fs::read(self.printed.path().join(name)).unwrap();
            clean(name, &printed);
            // On the platform the log is there.
            assert!(name == "stderr" || !printed.is_empty());
        }
        for seen in self.platform.seen() {
            clean("a request's address", seen.target.as_bytes());
            clean("a message to the platform", &seen.body);
            headers(&seen.headers, &["authorization"]);
        }
        for seen in self.server.seen() {
            // What a link is opened with is sent with it, and nowhere else.
            let names: &[&str] = if seen.path.starts_with("/rest") || seen.path.starts_with("/storage") {
                &["authorization", "apikey"]
            } else if is_signed(&seen) {
                // The name of a key is part of its signature.
                &["authorization", "x-amz-security-token"]
            } else {
                &[]
            };
            headers(&seen.headers, names);
            clean(&seen.path, &seen.body);
        }
        look_into(self.volume.path());
    }
}

fn is_signed(seen: &Seen) -> bool {
    seen.header("authorization").is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256"))
}

fn headers(all: &[(String, String)], but: &[&str]) {
    let rest = all.iter().filter(|(name, _)| !but.iter().any(|known| name.eq_ignore_ascii_case(known)));
    rest.for_each(|(name, value)| clean(name, value.as_bytes()));
}

#[track_caller]
fn clean(place: &str, content: &[u8]) {
    for secret in [MARK, KEY] {
        let found = content.windows(secret.len()).position(|window| window == secret.as_bytes());
        let around =
            found.map(|at| String::from_utf8_lossy(&content[at.saturating_sub(200)..content.len().min(at + 60)]));
        assert!(around.is_none(), "{place} holds a secret: {}", around.unwrap_or_default());
    }
}

/// Every name and every byte in a folder.
fn look_into(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let place = entry.path().display().to_string();
        clean(&place, place.as_bytes());
        if entry.file_type().unwrap().is_dir() {
            look_into(&entry.path());
        } else {
            clean(&place, &fs::read(entry.path()).unwrap());
        }
    }
}

fn conversations() -> Vec<u8> {
    let line = |number: u32| {
        let turns = json!([{ "role": "user", "content": format!("What is {number}?") }, { "role": "assistant", "content": format!("It is {number}.") }]);
        format!("{}\n", json!({ "messages": turns }))
    };
    (0..40).map(line).collect::<String>().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_job_that_is_done_comes_out() {
    let bench = Bench::new().await;
    bench.server.on("/data.jsonl", [Reply::file(conversations())]);
    bench.server.on("/put", [Reply::status(200)]);
    bench.server.on("/callback", [Reply::status(200)]);
    let worker = bench.start(&[]);
    let error = bench.ends(bench.job("done", "/data.jsonl"), Status::Completed).await;
    assert_eq!(error, "");
    assert!(worker.terminate().unwrap().success());
    assert_eq!(bench.server.count("/put"), 2);
    assert!(bench.server.count("/callback") > 1 && bench.server.count("/rest/v1/pipeline_training_jobs") > 1);
    bench.look();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_job_that_fails_comes_out() {
    let bench = Bench::new().await;
    let said = format!(r#"{{"statusCode":"403","error":"{MARK}","code":"{MARK}","message":"token={MARK}"}}"#);
    bench.server.on("/refused", [Reply::refusal(403, &said)]);
    bench.server.on("/elsewhere", [Reply::redirect(302, &format!("https://{MARK}:{MARK}@h/{MARK}?{MARK}"))]);
    bench.server.on("/data.jsonl", [Reply::file(conversations())]);
    bench.server.on("/put", [Reply::refusal(403, &said)]);
    bench.server.on("/callback", [Reply::refusal(403, &said)]);
    let worker = bench.start(&[]);
    let link = format!("https://h/x?token={MARK}");
    for (field, value) in [
        ("dataset_url", json!(format!("https://user:{MARK}@h/d.jsonl"))),
        ("dataset_url", json!(format!("h.example/d.jsonl?token={MARK}"))),
        ("dataset_url", json!({ "url": link })),
        ("dataset_url", json!(format!("ftp://h/{MARK}"))),
        ("dataset_url", json!(format!("s3://bucket/{MARK}0123456789abcdef"))),
        ("validation_url", json!([link])),
        ("upload_urls", json!(link)),
        ("upload_urls", json!({ "a": link, "b": format!("https://u:{MARK}@h/"), "c": [link] })),
        ("callback_url", json!([link])),
        ("hyperparameters", json!(link)),
        ("validation_dataset_url", json!(format!("https://h/y?{MARK}"))),
    ] {
        let mut job = bench.job("wrong", "/refused");
        job["input"]["validation_url"] = json!(link);
        job["input"][field] = value;
        bench.ends(job, Status::Failed).await;
    }
    for dataset in ["/refused", "/elsewhere", "/missing", "/data.jsonl"] {
        let error = bench.ends(bench.job(dataset.trim_matches('/'), dataset), Status::Failed).await;
        assert!(error.contains("127.0.0.1") || error.contains("https://"), "{error}");
    }
    bench.server.on("/put", [Reply::status(200)]);
    for endpoint in [format!("{}?token={MARK}", bench.server.url("/s3")), bench.server.url("/s3")] {
        let error = bench.ends(bench.job_with_store("stored", &endpoint), Status::Failed).await;
        assert!(error.contains("s3"), "{error}");
    }
    assert!(worker.terminate().unwrap().success());
    bench.look();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_store_that_fails_comes_out() {
    let bench = Bench::new().await;
    let said =
        format!("<Error><Code>{MARK}</Code><Message>{MARK}</Message><StringToSign>{MARK}</StringToSign></Error>");
    bench.server.on("/data.jsonl", [Reply::file(conversations())]);
    bench.server.on("/put", [Reply::status(200)]);
    bench.server.on("/results/", [Reply::status(200)]);
    bench.server.on("/results/bucket/dataset_report.json", [Reply::status(404), Reply::refusal(403, &said)]);
    let endpoint = bench.server.url("");
    let bucket: Vec<_> = BUCKET.into_iter().chain([("BUCKET_ENDPOINT_URL", endpoint.as_str())]).collect();
    let worker = bench.start(&bucket);
    let error = bench.ends(bench.job("bucket", "/data.jsonl"), Status::Failed).await;
    assert!(error.contains("s3://results/bucket/dataset_report.json") && error.contains("HTTP 403"), "{error}");
    assert!(worker.terminate().unwrap().success());
    bench.look();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_settings_that_are_wrong_comes_out() {
    for (name, value) in [
        ("MODEL_PATHS", "S3CR3Tpaths"),
        ("BUCKET_ENDPOINT_URL", "https://u:S3CR3Tbucket@h/b"),
        ("BUCKET_ENDPOINT_URL", "S3CR3Tbucket"),
        ("S3_ENDPOINT", "ftp://S3CR3Tendpoint"),
        ("S3_LINK_HOURS", "S3CR3Thours"),
        ("SUPABASE_URL", "https://u:S3CR3T@h"),
    ] {
        let bench = Bench::new().await;
        let mut variables = BUCKET.to_vec();
        variables.push((name, value));
        let mut worker = bench.start(&variables);
        let error = bench.ends(bench.job("wrong", "/data.jsonl"), Status::Failed).await;
        assert!(error.contains(name), "{error}");
        assert_eq!(worker.wait().unwrap().code(), Some(1));
        bench.look();
    }
}
