//! Many requests.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::Bench;

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, words) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = words.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// Other tests of this program would be measured with it; `.ci/run` does not run it. Alone:
/// `cargo test --workspace --test service -- --ignored --exact load::status_is_cheap`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time"]
async fn status_is_cheap() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "steps": 1_000_000, "pause": 100 })).await;
    bench.until(&id, "IN_PROGRESS").await;
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let request = format!("GET /v2/e/status/{id} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let (begin, before) = (Instant::now(), processor_time());
    for _ in 0..1000 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 4096];
        assert!(stream.read(&mut answer).await.unwrap() > 0);
        sleep(Duration::from_millis(4)).await;
    }
    let (wall, busy) = (begin.elapsed(), processor_time() - before);
    // Client and server together.
    println!("1000 requests in {wall:?}: {busy:?} of processor time");
    bench.post(&format!("/cancel/{id}"), &json!(null)).await;
    assert!(busy < wall / 10, "{busy:?} of {wall:?}");
    bench.goes().await;
}
