//! What is delivered can be fetched, and only by the link that was made.

use std::{fs, sync::Mutex, time::Duration};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::storage::upload::{Place, Store};
use sha2::{Digest, Sha256};

use crate::{Bench, JOB, PART, body, stand::Stand, store::get};

#[tokio::test]
async fn what_is_delivered_comes_back_by_a_plain_get() {
    let stand = Stand::start().await;
    let small = body(300_000);
    let bench = Bench::bucket(stand.address, "key-secret")
        .file("adapter_model.safetensors", &small)
        .file("adapter/adapter_config.json", b"{}")
        .file("empty.txt", b"");
    let delivered = bench.deliver().await.unwrap();
    assert_eq!((delivered.files.len(), delivered.not_delivered.len(), delivered.warnings.len()), (3, 0, 0));
    for (file, content) in delivered.files.iter().zip([&small[..], b"{}", b""]) {
        let (status, head, fetched) = get(&delivered.addresses()[&file.name]).await;
        assert_eq!((status, &fetched[..]), (200, content), "{head}");
        assert_eq!((file.bytes, &file.sha256[..]), (content.len() as u64, &Sha256::digest(content)[..]));
        assert!(file.sent && matches!(file.place, Place::Link(_)));
        assert_eq!(fs::read(stand.path(&format!("runs/{JOB}/{}", file.name))).unwrap(), content);
    }
    let (_, head, _) = get(&delivered.addresses()["adapter/adapter_config.json"]).await;
    assert!(head.contains("content-type: application/json"), "{head}");
}

#[tokio::test]
async fn a_large_file_goes_in_parts() {
    let stand = Stand::start().await;
    let content = body(2 * PART as usize + 1000);
    let bench = Bench::bucket(stand.address, "key-secret").file("a.safetensors", &content).file("b.json", b"{}");
    let seen = Mutex::new(Vec::new());
    let delivered = bench.deliver_telling(&|progress| seen.lock().unwrap().push(progress)).await.unwrap();
    assert!(get(&delivered.addresses()["a.safetensors"]).await.2 == content);
    assert_eq!(stand.count(|request| request.contains("partNumber=")), 3);
    assert_eq!(stand.left_behind(), [""; 0]);
    let seen: Vec<_> = seen.into_inner().unwrap().iter().map(|progress| (progress.files, progress.bytes)).collect();
    let whole = content.len() as u64;
    assert_eq!(seen, [(0, PART), (0, 2 * PART), (0, whole), (1, whole), (1, whole + 2), (2, whole + 2)]);
}

#[tokio::test]
async fn delivering_again_sends_what_is_new() {
    let stand = Stand::start().await;
    let bench = Bench::bucket(stand.address, "key-secret");
    let bench = bench.file("a", &body(2 * PART as usize)).file("b", b"old").file("c", b"same");
    bench.deliver().await.unwrap();
    fs::write(&bench.files[1].path, "new").unwrap();
    let again = bench.deliver().await.unwrap();
    let sent: Vec<bool> = again.files.iter().map(|file| file.sent).collect();
    assert_eq!(sent, [false, true, false]);
    assert_eq!(get(&again.addresses()["b"]).await.2, b"new");
    assert_eq!(stand.count(|request| request.contains("partNumber=")), 2);
}

#[tokio::test]
async fn links_that_were_changed_or_are_over_open_nothing() {
    let stand = Stand::start().await;
    let mut bench = Bench::bucket(stand.address, "key-secret").file("a", b"content").file("b", b"other");
    let delivered = bench.deliver().await.unwrap();
    let link = delivered.addresses()["a"].clone();
    let last = if link.ends_with('0') { '1' } else { '0' };
    let signature = format!("{}{last}", &link[..link.len() - 1]);
    let longer = link.replace("X-Amz-Expires=86400", "X-Amz-Expires=604800");
    for changed in [signature, longer, link.replace("/a?", "/b?"), link.split('?').next().unwrap().to_owned()] {
        assert_ne!(changed, link);
        assert_eq!(get(&changed).await.0, 403, "{changed}");
    }
    let Store::Bucket(settings) = &mut bench.store else { panic!("local") };
    settings.link_lifetime = Duration::from_secs(1);
    let short = bench.deliver().await.unwrap().addresses()["a"].clone();
    assert_eq!(get(&short).await.0, 200);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(get(&short).await.0, 403);
}

/// Supabase's endpoint has a path, which requests and links must keep.
#[tokio::test]
async fn links_keep_the_path_of_the_endpoint() {
    let server = FaultServer::start().await.unwrap();
    let path = format!("/storage/v1/s3/bucket/runs/{JOB}/a");
    server.on("/storage/v1/s3/bucket/", [Reply::status(200)]);
    server.on(&path, [Reply::status(404), Reply::status(200), Reply::file("content"), Reply::file("content")]);
    let mut bench = Bench::bucket(server.address(), "key-secret").file("a", b"content");
    let Store::Bucket(settings) = &mut bench.store else { panic!("local") };
    settings.s3.endpoint = Some(server.url("/storage/v1/s3").parse().unwrap());
    let delivered = bench.deliver().await.unwrap_or_else(|error| panic!("{error}: {:?}", server.seen()));
    let link: url::Url = delivered.addresses()["a"].parse().unwrap();
    assert_eq!(link.path(), path);
    let seen = server.seen();
    let methods: Vec<&str> = seen.iter().map(|seen| seen.method.as_str()).collect();
    assert_eq!(methods, ["HEAD", "HEAD", "PUT", "HEAD", "GET"]);
    let sent = &seen[2];
    assert_eq!(sent.body, b"content");
    for (name, value) in [
        ("content-length", "7"),
        ("content-type", "application/octet-stream"),
        ("content-md5", "mgNkuembtIDdJeHwKEyFVQ=="),
        ("x-amz-content-sha256", "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"),
        ("x-amz-checksum-sha256", "7XACtDnprIRfIjV9giusFERzD722AW0+yUMil7nsn3M="),
    ] {
        assert_eq!(sent.header(name), Some(value), "{name}");
    }
    // What not all stores know: chunks and trailers.
    assert!(sent.header("x-amz-trailer").is_none() && sent.header("content-encoding").is_none());
    let names: Vec<String> = link.query_pairs().map(|(name, _)| name.into_owned()).collect();
    assert!(names.iter().all(|name| name.starts_with("X-Amz-") || name == "x-id"), "{names:?}");
    assert!(link.as_str().contains("X-Amz-SignedHeaders=host&"), "{link}");
}
