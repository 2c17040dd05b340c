//! `brightrun serve` in process: RunPod's endpoint API over real connections, with a kind of job that does as it is told.

mod doors;
mod ends;
mod limits;
#[path = "../shared/obedient.rs"]
mod obedient;
mod restarts;
mod shapes;
mod training;
#[path = "../shared/settings.rs"]
mod training_settings;
mod usual;
mod webhooks;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use brightrun_worker::{
    net::Network,
    service::{Key, Limits, Service, Settings},
    work::Work,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use obedient::Obedient;

/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(300);

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HashMap<String, String>,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A service at work.
struct Bench {
    address: SocketAddr,
    work: Obedient,
    leave: CancellationToken,
    serving: JoinHandle<()>,
}

/// Settings for tests in a folder.
fn settings(folder: &Path) -> Settings {
    Settings {
        folder: folder.to_owned(),
        worker: "here".to_owned(),
        key: None,
        network: Network::default(),
        plain_http: true,
        execution: None,
        limits: Limits { webhook_pauses: vec![Duration::from_millis(50); 2], ..Limits::default() },
    }
}

impl Bench {
    /// In a folder of its own.
    async fn start() -> (Self, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Self::at(settings(folder.path())).await, folder)
    }

    async fn start_with(change: impl FnOnce(&mut Settings)) -> (Self, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path());
        change(&mut settings);
        (Self::at(settings).await, folder)
    }

    async fn at(settings: Settings) -> Self {
        let work = Obedient::default();
        let (address, leave, serving) = serve(settings, work.clone()).await;
        Self { address, work, leave, serving }
    }

    /// One request over a connection of its own.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        ask(self.address, method, path, headers, body).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, &[("content-type", "application/json")], &body.to_string()).await
    }

    /// The id of a job that is now in the queue.
    async fn run(&self, input: Value) -> String {
        self.run_body(json!({ "input": input })).await
    }

    async fn run_body(&self, body: Value) -> String {
        let reply = self.post("/v2/local/run", &body).await;
        assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("IN_QUEUE")), "{reply:?}");
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    async fn status(&self, id: &str) -> Value {
        self.get(&format!("/v2/local/status/{id}")).await.json()
    }

    /// The job once it has this status.
    async fn until(&self, id: &str, status: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.status(id).await;
            if told["status"] == status {
                return told;
            }
            assert!(Instant::now() < end, "job {id} is never {status}: {told}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The service goes, in order.
    async fn goes(self) {
        self.leave.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
    }
}

/// A service that does some work, where it is, and how it ends.
async fn serve(settings: Settings, work: impl Work) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let leave = CancellationToken::new();
    let service = Service::open(settings, work, leave.clone()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, leave, tokio::spawn(async move { service.run(listener).await.unwrap() }))
}

/// One request over a connection of its own.
async fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        text += &format!("host: {address}\r\n");
    }
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        text += &format!("content-length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    // A server that has refused the head need not read the rest.
    let _ = stream.write_all(body.as_bytes()).await;
    reply(stream).await
}

/// What a server says until it closes.
async fn reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap();
    assert!(read.is_ok() || !bytes.is_empty(), "{read:?}");
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.into()));
    Reply { status, headers: headers.collect(), text: body.to_owned() }
}

/// The key of tests.
fn key() -> (Key, &'static str) {
    const TEXT: &str = "0123456789abcdef";
    (Key::new(TEXT).unwrap(), TEXT)
}
