//! A worker of a few lines that sends what the official SDK sends, or something planted.

use std::net::SocketAddr;

use brightrun_tests::platform::Platform;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What a worker knows of the platform.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    environment: Vec<(String, String)>,
}

/// An answer: nothing of it if the connection ended before its head did.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: String,
    /// Whether the body was as long as announced.
    pub(super) whole: bool,
}

// === impl Answer ===

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

// === impl Client ===

impl Client {
    pub(super) fn new(platform: &Platform, environment: &[(String, String)]) -> Self {
        Self { address: platform.address(), environment: environment.to_vec() }
    }

    pub(super) fn variable(&self, name: &str) -> &str {
        let mut variables = self.environment.iter();
        &variables.find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// The target of an address in the environment, ids filled in.
    pub(super) fn target(&self, variable: &str, id: &str, parameters: &str) -> String {
        let worker = self.variable("RUNPOD_POD_ID");
        let address = self.variable(variable).replace("$RUNPOD_POD_ID", worker).replace("$ID", id);
        let target = &address[address.find("/v2/").unwrap()..];
        let and = if parameters.is_empty() {
            ""
        } else if target.contains('?') {
            "&"
        } else {
            "?"
        };
        format!("{target}{and}{parameters}")
    }

    pub(super) fn take_target(&self) -> String {
        self.target("RUNPOD_WEBHOOK_GET_JOB", self.variable("RUNPOD_POD_ID"), "job_in_progress=0")
    }

    pub(super) async fn take(&self) -> Option<Answer> {
        self.get(&self.take_target()).await
    }

    pub(super) async fn take_batch(&self, size: usize) -> Option<Answer> {
        let query = format!("batch_size={size}&job_in_progress=0");
        let target = self.target("RUNPOD_WEBHOOK_GET_JOB", self.variable("RUNPOD_POD_ID"), &query);
        self.get(&target.replace("/job-take/", "/job-take-batch/")).await
    }

    pub(super) async fn stops(&self) -> Option<Answer> {
        let target = self.target("RUNPOD_WEBHOOK_GET_JOB", self.variable("RUNPOD_POD_ID"), "");
        self.get(&target.replace("/job-take/", "/job-stop/")).await
    }

    pub(super) async fn ping(&self, jobs: &[&str]) -> Option<Answer> {
        let listed = if jobs.is_empty() { String::new() } else { format!("job_id={}&", jobs.join("%2C")) };
        let target = self.target("RUNPOD_WEBHOOK_PING", "", &format!("{listed}runpod_version=1.12.0"));
        let headers =
            [("User-Agent", "test"), ("Accept", "*/*"), ("Authorization", self.variable("RUNPOD_AI_API_KEY"))];
        self.send("GET", &target, &headers, "").await
    }

    pub(super) async fn progress(&self, job: &str, output: Value) -> Option<Answer> {
        self.done(job, json!({ "status": "IN_PROGRESS", "output": output })).await
    }

    pub(super) async fn done(&self, job: &str, body: Value) -> Option<Answer> {
        self.post("RUNPOD_WEBHOOK_POST_OUTPUT", job, "isStream=false", &body.to_string()).await
    }

    pub(super) async fn stream(&self, job: &str, body: Value) -> Option<Answer> {
        self.post("RUNPOD_WEBHOOK_POST_STREAM", job, "isStream=false", &body.to_string()).await
    }

    pub(super) async fn post(&self, variable: &str, job: &str, parameters: &str, body: &str) -> Option<Answer> {
        let target = self.target(variable, job, parameters);
        self.send("POST", &target, &self.post_headers(job), body).await
    }

    pub(super) fn post_headers<'a>(&'a self, job: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Authorization", self.variable("RUNPOD_AI_API_KEY")),
            ("User-Agent", "test"),
            ("X-Request-ID", job),
            ("charset", "utf-8"),
            ("Accept", "*/*"),
        ]
    }

    pub(super) fn get_headers(&self) -> Vec<(&str, &str)> {
        let key = self.variable("RUNPOD_AI_API_KEY");
        vec![("Content-Type", "application/json"), ("Authorization", key), ("User-Agent", "test"), ("Accept", "*/*")]
    }

    pub(super) async fn get(&self, target: &str) -> Option<Answer> {
        self.send("GET", target, &self.get_headers(), "").await
    }

    pub(super) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let text = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n{headers}{length}\r\n{body}", self.address);
        stream.write_all(text.as_bytes()).await.unwrap();
        answer(&mut stream).await
    }
}

/// One answer of a connection that may go on.
pub(super) async fn answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let header = |name: &str| {
        let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(line[name.len() + 1..].trim().to_owned())
    };
    let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head + length && stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
    Some(Answer {
        status: text.split(' ').nth(1).unwrap().parse().unwrap(),
        content_type: header("content-type").unwrap_or_default(),
        whole: bytes.len() == head + length,
        body: String::from_utf8(bytes[head..].to_vec()).unwrap(),
    })
}
