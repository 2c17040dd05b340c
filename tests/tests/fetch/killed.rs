//! A fetch in a process of its own, which is killed half-way or may not write any more.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::{
    net::Network,
    storage::{FetchLimits, Source, SourcePolicy, fetch},
};
use tokio_util::sync::CancellationToken;

use crate::{Bench, NAME, body};

/// Tells the other process what to fetch and into which folder.
const ADDRESS: &str = "BRIGHTRUN_TEST_ADDRESS";
const FOLDER: &str = "BRIGHTRUN_TEST_FOLDER";

/// More than is noted at once, and less than twice as much.
const NOTED: usize = 32 << 20;
const LONG: usize = NOTED + (16 << 20);

/// What the other process does. Nothing, where this is not it.
#[tokio::test]
async fn the_other_process() {
    let (Ok(address), Ok(folder)) = (env::var(ADDRESS), env::var(FOLDER)) else { return };
    let (source, target) = (Source::parse(&address).unwrap(), Path::new(&folder).join(NAME));
    let policy = SourcePolicy {
        plain_http: true,
        network: Network { private_addresses: true, ..Network::default() },
        ..SourcePolicy::service()
    };
    let token = CancellationToken::new();
    let outcome = fetch(&source, &target, &policy, &FetchLimits::default(), &|_| {}, &token).await;
    println!("{outcome:?}");
}

/// Starts the other process: `command` begins its command line.
fn other(command: &[&str], address: &str, bench: &Bench) -> Command {
    let program = env::current_exe().unwrap();
    let arguments = ["--exact", "killed::the_other_process", "--nocapture"];
    let mut command = match command {
        [] => Command::new(program),
        [shell, options @ ..] => {
            let mut shell = Command::new(shell);
            shell.args(options).arg(program);
            shell
        }
    };
    command.args(arguments).env(ADDRESS, address).env(FOLDER, bench.folder.path()).stdout(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_killed_is_resumed_by_the_next_one() {
    let server = FaultServer::start().await.unwrap();
    let content = body(LONG);
    let good = Reply::file(content.clone()).etag("\"a\"");
    server.on("/d", [good.clone().dripping(1 << 20, Duration::from_millis(20)), good]);
    let bench = Bench::new(&[&server]);
    let mut child = other(&[], &server.url("/d"), &bench).spawn().unwrap();
    while !bench.folder.path().join(format!("{NAME}.part.json")).exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!bench.target().exists());

    let fetched = bench.expect(&server.url("/d"), &content).await;
    assert_eq!((fetched.resumed, server.count("/d")), (1, 2));
    // Where it was noted depends on the pieces in which it came.
    let from = server.seen()[1].range_start().unwrap();
    assert!((NOTED..LONG).contains(&from), "{from}");
}

/// The limit on the size of a file stands in for a full disk: the same call fails at the same place.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_is_an_error_and_nothing_is_left() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::file(body(6_000_000)).etag("\"a\"")]);
    let bench = Bench::new(&[&server]);
    let shell = ["sh", "-c", "trap '' XFSZ; ulimit -f 2000; exec \"$0\" \"$@\""];
    let output = other(&shell, &server.url("/d"), &bench).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Err(Disk"), "{text}");
    assert_eq!(bench.names(), [""; 0]);
}
