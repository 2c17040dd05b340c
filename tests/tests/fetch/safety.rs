//! Links that lead where they must not.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::{
    net::{Names, Network},
    storage::SourcePolicy,
};

use crate::{Bench, body, says};

#[tokio::test]
async fn a_service_takes_neither_files_nor_plain_links() {
    let server = FaultServer::start().await.unwrap();
    let mut bench = Bench::new(&[&server]);
    bench.policy = SourcePolicy {
        network: Network { allowed_addresses: vec![server.address()], ..Network::default() },
        ..SourcePolicy::service()
    };
    says(&bench.fails(&server.url("/d")).await, "NotAllowed", "use an https:// link");
    for file in ["file:///etc/hostname", "/etc/hostname", "relative.jsonl"] {
        says(&bench.fails(file).await, "NotAllowed", "files of this machine are not allowed here");
    }
    says(&bench.fails("s3://bucket/key").await, "Configuration", "no S3 store is set up");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_person_may_read_local_files() {
    let server = FaultServer::start().await.unwrap();
    let mut bench = Bench::new(&[&server]);
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("d.jsonl.gz");
    std::fs::write(&path, crate::gzip(&body(100))).unwrap();
    bench.policy = SourcePolicy::local();
    bench.expect(path.to_str().unwrap(), &body(100)).await;
    bench.expect(&format!("file://{}", path.display()), &body(100)).await;
    says(&bench.get(&server.url("/d")).await.unwrap_err(), "NotAllowed", "not encrypted");
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_in_every_spelling() {
    let server = FaultServer::start().await.unwrap();
    let port = server.address().port();
    let bench = Bench::new(&[]);
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "10.0.0.1",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[fe80::1]",
    ] {
        let error = bench.fails(&format!("http://{host}:{port}/d")).await;
        says(&error, "RefusedAddress", "use a link to a public server");
    }
    assert!(server.seen().is_empty());
    let mut bench = Bench::new(&[]);
    bench.policy.network.private_addresses = true;
    server.on("/d", [Reply::file("x")]);
    bench.expect(&server.url("/d"), b"x").await;
}

#[tokio::test]
async fn redirects_are_followed_to_public_places_only() {
    let (server, inside) = (FaultServer::start().await.unwrap(), FaultServer::start().await.unwrap());
    inside.on("/d", [Reply::file("secret")]);
    let cases = [
        ("/loopback", inside.url("/d"), "RefusedAddress"),
        ("/localhost", format!("http://localhost:{}/d", inside.address().port()), "RefusedAddress"),
        ("/metadata", "http://169.254.169.254/latest/meta-data/".to_owned(), "RefusedAddress"),
        ("/metadata6", "http://[fd00:ec2::254]/".to_owned(), "RefusedAddress"),
        ("/file", "file:///etc/passwd".to_owned(), "RefusedRedirect"),
        ("/ftp", "ftp://host/x".to_owned(), "RefusedRedirect"),
        ("/user", "http://user:pass@host/x".to_owned(), "RefusedRedirect"),
        ("/circle", server.url("/circle"), "RefusedRedirect"),
        ("/nowhere", "http://".to_owned(), "RefusedRedirect"),
    ];
    let bench = Bench::new(&[&server]);
    for (path, location, kind) in cases {
        server.on(path, [Reply::redirect(302, &location)]);
        says(&bench.fails(&server.url(path)).await, kind, "");
        assert_eq!(server.count(path), 1, "{path}");
    }
    server.on("/without", [Reply::status(302)]);
    says(&bench.fails(&server.url("/without")).await, "RefusedRedirect", "without saying where to");
    assert!(inside.seen().is_empty());
}

#[tokio::test]
async fn redirects_are_followed_so_far() {
    let (server, second) = (FaultServer::start().await.unwrap(), FaultServer::start().await.unwrap());
    for step in 0..6 {
        server
            .on(&format!("/{step}"), [Reply::redirect([301, 302, 303, 307, 308][step % 5], &format!("{}", step + 1))]);
    }
    server.on("/6", [Reply::file("x")]);
    let bench = Bench::new(&[&server, &second]);
    bench.expect(&server.url("/1"), b"x").await;
    let error = bench.get(&server.url("/0")).await.unwrap_err();
    says(&error, "RefusedRedirect", "more than 5 times");
    // Nothing of the first request goes along to another host.
    server.on("/other", [Reply::redirect(302, &second.url("/d")).header("set-cookie", "a=b")]);
    second.on("/d", [Reply::file("y")]);
    bench.expect(&server.url("/other?token=secret"), b"y").await;
    let seen = &second.seen()[0];
    assert_eq!(seen.header("host"), Some(second.address().to_string().as_str()));
    for (name, value) in &seen.headers {
        assert!(
            !["cookie", "referer", "authorization"].contains(&name.as_str()) && !value.contains("secret"),
            "{name}"
        );
    }
}

/// A name whose address changes between the check and the connection gains nothing: it is asked once per hop.
#[tokio::test]
async fn a_name_is_resolved_once_and_what_was_checked_is_used() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::file("x")]);
    let asked = Arc::new(AtomicUsize::new(0));
    let mut bench = Bench::new(&[&server]);
    let count = asked.clone();
    bench.policy.network.names = Names::with(move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let address: IpAddr = if first { [127, 0, 0, 1].into() } else { [169, 254, 169, 254].into() };
        Ok(vec![address])
    });
    let url = format!("http://data.example.test:{}/d", server.address().port());
    bench.expect(&url, b"x").await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(server.seen()[0].header("host"), Some(&url["http://".len()..url.len() - "/d".len()]));
    says(&bench.get(&url).await.unwrap_err(), "RefusedAddress", "169.254.169.254");
    assert_eq!(server.count("/d"), 1);
}

#[tokio::test]
async fn one_bad_address_among_good_ones_is_enough() {
    let server = FaultServer::start().await.unwrap();
    let mut bench = Bench::new(&[&server]);
    bench.policy.network.names = Names::with(|_| Ok(vec![[127, 0, 0, 1].into(), [10, 0, 0, 7].into()]));
    let url = format!("http://data.example.test:{}/d", server.address().port());
    says(&bench.fails(&url).await, "RefusedAddress", "10.0.0.7, which is refused: a private network");
    assert!(server.seen().is_empty());
    bench.policy.network.names = Names::with(|_| Ok(Vec::new()));
    says(&bench.fails(&url).await, "Unreachable", "has no address");
}
