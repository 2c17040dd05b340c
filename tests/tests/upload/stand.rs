//! The S3 server, with faults in front of it.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use s3s::{Body, service::S3Service};
use tempfile::TempDir;

use crate::store::{self, Answer};

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
        let state = Arc::new(State::default());
        let seen = state.clone();
        let (folder, address) = store::start(move |request, store| answer(request, store, seen.clone())).await;
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

async fn answer(request: Request<Incoming>, store: S3Service, state: Arc<State>) -> Answer {
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
    match rule {
        None => store::answer(request.map(Body::from), store).await,
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
            store::answer(Request::from_parts(head, Body::from(bytes)), store).await
        }
        Some(Fault::Lost) => {
            store::answer(request.map(Body::from), store).await?;
            Err("lost".into())
        }
        Some(Fault::Hangs) => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Err("late".into())
        }
    }
}
