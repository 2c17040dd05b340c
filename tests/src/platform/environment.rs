//! The environment a worker is started with.

use std::net::SocketAddr;

use super::{ENDPOINT, GPU, KEY};

/// How the addresses in a worker's environment look. All of these are in real use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urls {
    /// As the platform gives them: `…/job-take/$ID?gpu=NVIDIA+…`.
    Full,
    /// Without a query.
    Bare,
    /// The kind of GPU is a name that nobody has replaced: `?gpu=$RUNPOD_GPU_TYPE_ID`.
    GpuName,
    /// As the platform gives them, with the stream's address under the name the SDK's example has for it.
    ExampleNames,
    /// As the harness of RunPod's Hub gives them: `$RUNPOD_POD_ID` in the take's address, which has no query; neither
    /// ping nor stream.
    Hub,
}

/// What a worker of this id is started with.
pub(super) fn environment(
    address: SocketAddr,
    worker: &str,
    urls: Urls,
    ping_milliseconds: u64,
) -> Vec<(String, String)> {
    let base = format!("http://{address}/v2/{ENDPOINT}");
    let gpu = format!("?gpu={GPU}");
    let (take_worker, take_query, query) = match urls {
        Urls::Full | Urls::ExampleNames => ("$ID", gpu.as_str(), gpu.as_str()),
        Urls::Bare => ("$ID", "", ""),
        Urls::GpuName => ("$ID", "?gpu=$RUNPOD_GPU_TYPE_ID", "?gpu=$RUNPOD_GPU_TYPE_ID"),
        Urls::Hub => ("$RUNPOD_POD_ID", "", "?gpu=$RUNPOD_GPU_TYPE_ID"),
    };
    let mut variables = vec![
        ("RUNPOD_WEBHOOK_GET_JOB", format!("{base}/job-take/{take_worker}{take_query}")),
        ("RUNPOD_WEBHOOK_POST_OUTPUT", format!("{base}/job-done/$RUNPOD_POD_ID/$ID{query}")),
        ("RUNPOD_AI_API_KEY", KEY.to_owned()),
        ("RUNPOD_POD_ID", worker.to_owned()),
        ("RUNPOD_POD_HOSTNAME", format!("{worker}-host")),
        ("RUNPOD_ENDPOINT_ID", ENDPOINT.to_owned()),
    ];
    if urls == Urls::Hub {
        variables.push(("RUNPOD_TEST", "true".to_owned()));
    } else {
        let stream = match urls {
            Urls::ExampleNames => "RUNPOD_WEBHOOK_JOB_STREAM",
            _ => "RUNPOD_WEBHOOK_POST_STREAM",
        };
        variables.push((stream, format!("{base}/job-stream/$RUNPOD_POD_ID/$ID{query}")));
        variables.push(("RUNPOD_WEBHOOK_PING", format!("{base}/ping/$RUNPOD_POD_ID{query}")));
        variables.push(("RUNPOD_PING_INTERVAL", ping_milliseconds.to_string()));
    }
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
