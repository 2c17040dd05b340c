//! A real S3 server, which checks signatures, with faults in front of it.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream};

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It is answered with a status and an error's name; the store never sees it.
    Says(u16, &'static str),
    /// The connection ends inside its body; the store never sees it.
    Cut,
    /// One byte of its body is another one.
    Flip,
    /// The store does it, and its answer is lost.
    Lost,
    /// It is never answered.
    Hangs,
}

/// For how many requests a fault happens, to which.
struct Rule {
    wanted: fn(&str) -> bool,
    fault: Fault,
    times: usize,
}

/// The server.
pub(crate) struct Stand {
    folder: TempDir,
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
}

impl Stand {
    /// With an empty bucket `bucket`.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bucket")).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single("key-id", "key-secret"));
        let store = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let serving = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (store, state) = (store.clone(), serving.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, store.clone(), state.clone()));
                    let connection = Builder::new(TokioExecutor::new());
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { folder, address, state }
    }

    /// Lets the next requests that are wanted go wrong. A request is shown as `PUT /bucket/key?query`.
    pub(crate) fn fault(&self, times: usize, fault: Fault, wanted: fn(&str) -> bool) {
        self.state.rules.lock().unwrap().push(Rule { wanted, fault, times });
    }

    /// How many such requests came.
    pub(crate) fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.state.seen.lock().unwrap().iter().filter(|seen| wanted(seen)).count()
    }

    /// The file of an object.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join("bucket").join(key)
    }

    pub(crate) fn remove_bucket(&self) {
        fs::remove_dir_all(self.folder.path().join("bucket")).unwrap();
    }

    /// What is left of uploads in parts: their parts and their notes.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("upload")).collect()
    }
}

async fn answer(
    request: Request<Incoming>,
    store: S3Service,
    state: Arc<State>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let shown = format!("{} {}", request.method(), request.uri());
    state.seen.lock().unwrap().push(shown.clone());
    let rule = {
        let mut rules = state.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| rule.times > 0 && (rule.wanted)(&shown));
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        })
    };
    let failed = |_| "the store failed".into();
    match rule {
        None => store.call(request.map(Body::from)).await.map_err(failed),
        Some(Fault::Says(status, code)) => {
            request.into_body().collect().await?;
            let text = format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
            Ok(Response::builder().status(status).body(Body::from(text))?)
        }
        Some(Fault::Cut) => {
            request.into_body().frame().await;
            Err("cut".into())
        }
        Some(Fault::Flip) => {
            let (head, body) = request.into_parts();
            let mut bytes = body.collect().await?.to_bytes().to_vec();
            bytes[0] ^= 1;
            store.call(Request::from_parts(head, Body::from(bytes))).await.map_err(failed)
        }
        Some(Fault::Lost) => {
            store.call(request.map(Body::from)).await.map_err(|_| "the store failed")?;
            Err("lost".into())
        }
        Some(Fault::Hangs) => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Err("late".into())
        }
    }
}

/// A plain GET without headers of its own, as a user's program does it: status, headers and body.
pub(crate) async fn get(link: &str) -> (u16, String, Vec<u8>) {
    let url: url::Url = link.parse().unwrap();
    let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let mut stream = TcpStream::connect(&host).await.unwrap();
    let target = &url[url::Position::BeforePath..];
    let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}
