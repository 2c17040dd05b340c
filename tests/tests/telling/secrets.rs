//! A secret in every place that telling has, looked for in every text that comes out, the log of every crate included.

use std::{
    fs, io,
    sync::{Arc, Mutex},
};

use brightrun_tests::faults::{FaultServer, Reply};
use hyper::Method;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

use crate::{
    PATIENCE, at, failure, job, limits, policy,
    project::{Fault, KEY, Project},
    success, telling,
};

/// Shaped like a token, so that it is known for one in a path too.
const SECRET: &str = "S3CR3Tabcdefghijk0123456789";

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Catches what is logged on this thread, by whomever.
fn catch() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(log.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[track_caller]
fn clean(text: &str) {
    assert!(!text.contains("S3CR3T"), "{text}");
}

#[tokio::test]
async fn nothing_of_a_callback_is_shown() {
    let (log, _guard) = catch();
    let json = format!(r#"{{"statusCode":"403","error":"{SECRET}","code":"{SECRET}","message":"token={SECRET}"}}"#);
    for (number, reply) in [
        Reply::status(200),
        Reply::refusal(400, &json),
        Reply::refusal(500, &json),
        Reply::redirect(302, &format!("https://{SECRET}:{SECRET}@host/{SECRET}")),
        Reply::raw(format!("HTTP/1.1 {SECRET}\r\n\r\n")),
        Reply::raw(SECRET),
        Reply::status(503).header("retry-after", SECRET),
    ]
    .into_iter()
    .enumerate()
    {
        let server = FaultServer::start().await.unwrap();
        let path = format!("/{SECRET}/hook");
        server.on(&path, [reply]);
        let limits = brightrun_worker::telling::TellingLimits {
            failures: 1,
            last_of_callback: std::time::Duration::from_millis(100),
            ..limits()
        };
        let telling = telling(&policy(&server), limits, &[("BRIGHTRUN_CALLBACK_SECRET", SECRET)]);
        let told = telling.begin(&job(&server.url(&format!("{path}?token={SECRET}#{SECRET}"))), "job");
        while server.seen().is_empty() {
            sleep(std::time::Duration::from_millis(5)).await;
        }
        told.progress(&at("training", 1));
        told.ended(&failure("why"));
        telling.settle(PATIENCE).await;
        clean(&format!("{:?} {telling:?}", told.warnings()));
        for seen in server.seen() {
            // The address opens the callback; what is said there is what was to be said.
            assert!(seen.query.contains(SECRET));
            clean(&String::from_utf8(seen.body.clone()).unwrap());
            seen.headers.iter().for_each(|(name, value)| clean(&format!("{name}: {value}")));
        }
        assert_eq!(told.warnings().is_empty(), number == 0);
    }
    let log = log.text();
    clean(&log);
    assert!(log.contains("callback_url http://127.0.0.1") && log.contains("/S3CR…/hook"), "{log}");
}

#[tokio::test]
async fn nothing_of_a_project_is_shown() {
    let (log, _guard) = catch();
    let id = "6f1c2b1e-8a53-4a0e-9d5e-2f6f0d0c7a11";
    let project = Project::start(id).await;
    let variables = project.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let telling = telling(&policy(&FaultServer::start().await.unwrap()), limits(), &variables);
    let text = r#"{"statusCode":"400","code":"S3CR3T","error":"S3CR3T","message":"S3CR3T","hint":"S3CR3T"}"#;
    let says = [400, 401, 409, 413, 503].map(|status| Fault::Says(status, text));
    project.faults(Method::PATCH, says);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "a").unwrap();
    for status in [400, 401, 409, 413, 302] {
        project.faults(Method::POST, [Fault::Says(status, text)]);
        let told = telling.begin(&job(""), id);
        clean(&told.adapter(folder.path(), &CancellationToken::new()).await.unwrap_err());
        told.ended(&success());
        telling.settle(PATIENCE).await;
        clean(&format!("{:?}", told.warnings()));
    }
    clean(&format!("{telling:?}"));
    for method in [Method::PATCH, Method::POST] {
        for asked in project.asked(&method) {
            clean(&asked.target);
            clean(&String::from_utf8_lossy(&asked.body));
        }
    }
    let log = log.text();
    clean(&log);
    assert!(log.contains("was not written") && !log.contains(KEY), "{log}");
}
