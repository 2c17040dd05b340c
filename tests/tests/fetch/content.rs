//! How large it is and how it is packed.

use brightrun_tests::faults::{FaultServer, Reply};

use crate::{Bench, body, gzip, says};

#[tokio::test]
async fn what_is_too_large_is_not_even_begun() {
    let server = FaultServer::start().await.unwrap();
    server.on("/announced", [Reply::file(body(10_001))]);
    server.on("/chunked", [Reply::file(body(10_001)).chunked()]);
    server.on("/right", [Reply::file(body(10_000)).chunked()]);
    let mut bench = Bench::new(&[&server]);
    bench.policy.max_bytes = 10_000;
    says(&bench.fails(&server.url("/announced")).await, "TooLarge", "10001 bytes, and at most 10000");
    says(&bench.fails(&server.url("/chunked")).await, "TooLarge", "it has more bytes");
    bench.expect(&server.url("/right"), &body(10_000)).await;
    assert_eq!((server.count("/announced"), server.count("/chunked")), (1, 1));
}

#[tokio::test]
async fn gzip_is_undone_wherever_it_was_done() {
    let server = FaultServer::start().await.unwrap();
    let content = body(100_000);
    let packed = gzip(&content);
    let encoded = |bytes: &[u8]| Reply::file(bytes).header("content-encoding", "gzip").etag("\"a\"");
    server.on("/encoded", [encoded(&packed)]);
    server.on("/file.jsonl.gz", [Reply::file(packed.clone())]);
    server.on("/both", [encoded(&gzip(&packed))]);
    server.on("/cut", [encoded(&packed).cut_after(packed.len() / 2), encoded(&packed)]);
    server.on("/members", [Reply::file([&packed[..], &packed].concat())]);
    let bench = Bench::new(&[&server]);
    for path in ["/encoded", "/file.jsonl.gz", "/both"] {
        bench.expect(&server.url(path), &content).await;
    }
    assert_eq!(bench.expect(&server.url("/cut"), &content).await.resumed, 1);
    bench.expect(&server.url("/members"), &content.repeat(2)).await;
}

#[tokio::test]
async fn a_compressed_bomb_is_a_size_error() {
    let server = FaultServer::start().await.unwrap();
    let bomb = gzip(&vec![b' '; 50_000_000]);
    server.on("/encoded", [Reply::file(bomb.clone()).header("content-encoding", "gzip")]);
    server.on("/file", [Reply::file(bomb.clone())]);
    server.on("/double", [Reply::file(gzip(&bomb))]);
    let mut bench = Bench::new(&[&server]);
    bench.policy.max_bytes = 1_000_000;
    for path in ["/encoded", "/file", "/double"] {
        says(&bench.fails(&server.url(path)).await, "TooLarge", "decompressed it has more bytes");
        assert_eq!(server.count(path), 1);
    }
}

#[tokio::test]
async fn packing_that_cannot_be_undone_is_named() {
    let server = FaultServer::start().await.unwrap();
    let packed = gzip(&body(1000));
    let cases = [
        ("/cut", Reply::file(&packed[..packed.len() - 9]), "Damaged", "compress and upload"),
        ("/none", Reply::file("{}").header("content-encoding", "gzip"), "Damaged", "it is none"),
        ("/thrice", Reply::file(gzip(&gzip(&packed))), "Damaged", "more than twice"),
        ("/br", Reply::file("x").header("content-encoding", "br"), "Encoding", "compressed with br"),
        ("/zstd", Reply::file("x").header("content-encoding", "zstd"), "Encoding", "compressed with zstd"),
        ("/two", Reply::file("x").header("content-encoding", "gzip, br"), "Encoding", "not read"),
    ];
    for (path, reply, kind, text) in cases {
        server.on(path, [reply]);
        says(&Bench::new(&[&server]).fails(&server.url(path)).await, kind, text);
        assert_eq!(server.count(path), 1, "{path}");
    }
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::file("")]);
    Bench::new(&[&server]).expect(&server.url("/d"), b"").await;
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let server = FaultServer::start().await.unwrap();
    let bench = Bench::new(&[&server]);
    std::fs::create_dir(bench.target()).unwrap();
    server.on("/d", [Reply::file("x")]);
    // A folder lies where the file should go.
    says(&bench.get(&server.url("/d")).await.unwrap_err(), "Disk", crate::NAME);
}
