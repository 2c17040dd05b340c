//! A real S3 server, which checks signatures.

use std::{error::Error, fs, future::Future, net::SocketAddr};

use brightrun_worker::storage::{
    S3Settings, StoreKey,
    upload::{BucketSettings, LINK_LIFETIME},
};
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
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What a request comes to; with an error its connection ends.
pub(crate) type Answer = Result<Response<Body>, Box<dyn Error + Send + Sync>>;

/// Starts a server with an empty bucket `bucket` in a folder. `answer` may do something with a request before the store
/// does, or instead.
pub(crate) async fn start<F>(
    answer: impl Fn(Request<Incoming>, S3Service) -> F + Clone + Send + 'static,
) -> (TempDir, SocketAddr)
where
    F: Future<Output = Answer> + Send + 'static,
{
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bucket")).unwrap();
    let mut builder = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
    let mut keys = SimpleAuth::from_single("key-id", "key-secret");
    keys.register("key-id-2".into(), "key-secret-2".into());
    builder.set_auth(keys);
    let store = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (store, answer) = (store.clone(), answer.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, store.clone()));
                let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (folder, address)
}

/// What the store itself answers.
pub(crate) async fn answer(request: Request<Body>, store: S3Service) -> Answer {
    store.call(request).await.map_err(|_| "the store failed".into())
}

/// Its bucket, for somebody with this key.
pub(crate) fn settings(endpoint: SocketAddr, secret: &str) -> BucketSettings {
    BucketSettings {
        s3: S3Settings {
            endpoint: Some(format!("http://{endpoint}").parse().unwrap()),
            region: Some("us-east-1".into()),
            key: StoreKey::given("key-id", secret),
            trusted: true,
        },
        bucket: "bucket".into(),
        prefix: "runs".into(),
        path_style: true,
        link_lifetime: LINK_LIFETIME,
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
