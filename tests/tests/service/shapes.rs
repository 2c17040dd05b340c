//! What programs read: metrics, the description.

use serde_json::json;

use crate::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_jobs_requests_and_the_process_and_nothing_that_strangers_wrote() {
    let (bench, _folder) = Bench::start().await;
    let done = bench.run(json!({})).await;
    bench.until(&done, "COMPLETED").await;
    let running = bench.run(json!({ "steps": 1_000_000, "name": "S3CR3T\"}" })).await;
    let waiting = bench.run(json!({})).await;
    bench.until(&running, "IN_PROGRESS").await;
    bench.get("/S3CR3T/nowhere").await;
    bench.get(&format!("/v2/S3CR3T/status/{waiting}")).await;
    let reply = bench.get("/metrics").await;
    assert!(reply.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    for line in [
        "brightrun_jobs{status=\"COMPLETED\"} 1\n",
        "brightrun_jobs{status=\"IN_PROGRESS\"} 1\n",
        "brightrun_queue_length 1\n",
        "brightrun_jobs_ended_total{status=\"COMPLETED\"} 1\n",
        "brightrun_job_start_seconds_count 2\n",
        "brightrun_http_requests_total{route=\"none\",code=\"404\"} 1\n",
        "brightrun_http_requests_total{route=\"run\",code=\"200\"} 3\n",
        "# TYPE brightrun_job_start_seconds histogram\n",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
    ] {
        assert!(reply.text.contains(line), "{line}\n{}", reply.text);
    }
    for secret in ["S3CR3T", &waiting, &running] {
        assert!(!reply.text.contains(secret), "{secret}\n{}", reply.text);
    }
    for line in reply.text.lines().filter(|line| !line.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    bench.post(&format!("/cancel/{running}"), &json!(null)).await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_names_addresses_and_parameters() {
    let (bench, _folder) = Bench::start().await;
    let description = bench.get("/openapi.json").await.json();
    assert_eq!(description["openapi"], "3.1.0");
    assert!(description["paths"]["/run"]["post"]["requestBody"].is_object());
    assert!(description["paths"]["/status/{id}"]["get"].is_object());
    let input = &description["components"]["schemas"]["Input"]["properties"];
    assert_eq!(input["hyperparameters"]["properties"]["lora_rank"]["type"], "integer");
    bench.goes().await;
}
