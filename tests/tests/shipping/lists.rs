//! The fields that RunPod knows.

use crate::fields::{
    Any, Chosen, Field, Flag, Kind, List, Names, Number, Object, OneOf, Optional, Plain, Required, Text, Whole,
};

/// Hosts match one of these exactly.
pub(crate) const CUDA_VERSIONS: Kind =
    OneOf(&["11.8", "12.0", "12.1", "12.2", "12.3", "12.4", "12.5", "12.6", "12.7", "12.8", "12.9", "13.0"]);
/// Of serverless workers.
pub(crate) const GPU_POOLS: Kind = OneOf(&[
    "AMPERE_16",
    "AMPERE_24",
    "ADA_24",
    "ADA_32_PRO",
    "AMPERE_48",
    "ADA_48_PRO",
    "AMPERE_80",
    "ADA_80_PRO",
    "HOPPER_141",
    "BLACKWELL_96",
    "BLACKWELL_180",
]);
pub(crate) const GPU_TYPES: Kind = OneOf(&[
    "NVIDIA A100 80GB PCIe",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H100 PCIe",
    "NVIDIA H100 NVL",
    "NVIDIA H200",
    "NVIDIA B200",
    "NVIDIA L40S",
    "NVIDIA L40",
    "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA RTX A6000",
    "NVIDIA A40",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
]);
/// Those that have volumes and RunPod's S3 API for them.
pub(crate) const DATA_CENTERS: Kind = OneOf(&[
    "EU-CZ-1", "EU-RO-1", "EUR-IS-1", "EUR-NO-1", "US-CA-2", "US-GA-2", "US-IL-1", "US-KS-2", "US-MD-1", "US-MO-1",
    "US-MO-2", "US-NC-1", "US-NC-2", "US-NE-1", "US-WA-1",
]);

/// Limits of time, in milliseconds.
pub(crate) const SHORTEST_EXECUTION: u64 = 5_000;
pub(crate) const SHORTEST_LIFE: u64 = 10_000;
pub(crate) const LONGEST: u64 = 7 * 24 * 3_600_000;
/// How long a job lives, with its time in the queue, that does not say it itself.
pub(crate) const USUAL_LIFE: u64 = 24 * 3_600_000;

/// `.runpod/hub.json`.
pub(crate) const HUB: Kind = Object(&[
    ("title", Required, Text),
    ("description", Required, Text),
    ("type", Required, OneOf(&["serverless"])),
    ("category", Required, OneOf(&["audio", "embedding", "language", "video", "image"])),
    ("iconUrl", Optional, Text),
    ("config", Required, Object(HUB_CONFIG)),
]);

const HUB_CONFIG: &[Field] = &[
    ("runsOn", Required, OneOf(&["GPU"])),
    ("endpointType", Optional, OneOf(&["LB"])),
    ("containerDiskInGb", Required, Whole(1, 1000)),
    // Of machines with GPUs.
    ("gpuCount", Required, Whole(1, 8)),
    ("gpuIds", Required, Chosen(&GPU_POOLS, &GPU_TYPES)),
    ("allowedCudaVersions", Optional, List(&CUDA_VERSIONS)),
    (
        "env",
        Optional,
        List(&Object(&[("key", Required, Text), ("value", Optional, Text), ("input", Optional, Object(HUB_INPUT))])),
    ),
    ("presets", Optional, List(&Object(&[("name", Required, Text), ("defaults", Required, Names(&Plain))]))),
];

const HUB_INPUT: &[Field] = &[
    ("name", Required, Text),
    ("type", Required, OneOf(&["string", "number", "boolean", "huggingface"])),
    ("description", Optional, Text),
    ("default", Optional, Plain),
    ("required", Optional, Flag),
    ("advanced", Optional, Flag),
    ("options", Optional, List(&Object(&[("label", Required, Text), ("value", Required, Text)]))),
    ("min", Optional, Plain),
    ("max", Optional, Plain),
    ("trueValue", Optional, Text),
    ("falseValue", Optional, Text),
];

/// `.runpod/tests.json`.
pub(crate) const HUB_TESTS: Kind = Object(&[
    (
        "tests",
        Required,
        List(&Object(&[
            ("name", Required, Text),
            ("input", Required, Any),
            ("timeout", Optional, Whole(1000, 600_000)),
        ])),
    ),
    (
        "config",
        Required,
        Object(&[
            ("gpuTypeId", Required, GPU_TYPES),
            ("gpuCount", Required, Whole(1, 8)),
            ("env", Optional, List(&Object(&[("key", Required, Text), ("value", Required, Text)]))),
            ("allowedCudaVersions", Optional, List(&CUDA_VERSIONS)),
        ]),
    ),
]);

/// `POST /v2/templates`.
pub(crate) const TEMPLATE: Kind = Object(&[
    ("name", Required, Text),
    ("image", Required, Text),
    ("category", Optional, OneOf(&["CPU", "NVIDIA", "AMD"])),
    ("serverless", Optional, Flag),
    ("public", Optional, Flag),
    ("allowedCudaVersions", Optional, List(&CUDA_VERSIONS)),
    ("startSsh", Optional, Flag),
    ("startJupyter", Optional, Flag),
    ("args", Optional, Text),
    ("disk", Optional, Whole(1, 1000)),
    ("env", Optional, Names(&Text)),
    ("ports", Optional, List(&Text)),
    ("registry", Optional, Text),
]);

/// `POST /v2/serverless`, from a template.
pub(crate) const ENDPOINT: Kind = Object(&[
    ("name", Required, Text),
    ("type", Required, OneOf(&["QUEUE", "LOAD_BALANCER"])),
    ("templateId", Required, Text),
    (
        "scaling",
        Required,
        Object(&[("type", Required, OneOf(&["QUEUE_DELAY"])), ("queueDelay", Required, Number(0.5))]),
    ),
    ("gpu", Required, Object(ENDPOINT_GPU)),
    ("workers", Optional, Object(ENDPOINT_WORKERS)),
    ("timeout", Optional, Whole(SHORTEST_EXECUTION, LONGEST)),
    ("networkVolumes", Optional, List(&Text)),
    ("dataCenterIds", Optional, List(&DATA_CENTERS)),
    ("flashboot", Optional, OneOf(&["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"])),
    ("args", Optional, Text),
    ("disk", Optional, Whole(1, 1000)),
    ("env", Optional, Names(&Text)),
    ("ports", Optional, List(&Text)),
    ("registry", Optional, Text),
]);

const ENDPOINT_GPU: &[Field] = &[
    ("pools", Required, List(&GPU_POOLS)),
    ("excludedTypes", Optional, List(&GPU_TYPES)),
    ("count", Optional, Whole(1, 8)),
    ("allowedCudaVersions", Optional, List(&CUDA_VERSIONS)),
    ("minCudaVersion", Optional, CUDA_VERSIONS),
];

const ENDPOINT_WORKERS: &[Field] =
    &[("min", Optional, Whole(0, 100)), ("max", Optional, Whole(0, 100)), ("idleTimeout", Optional, Whole(1, 3600))];

/// `POST /v2/network-volumes`.
pub(crate) const VOLUME: Kind = Object(&[
    ("name", Required, Text),
    ("size", Required, Whole(10, 4096)),
    ("dataCenter", Required, DATA_CENTERS),
    ("type", Optional, OneOf(&["STANDARD", "HIGH_PERFORMANCE"])),
]);

/// `POST /v2/{endpoint}/run`. What is in `input` is the worker's to check.
pub(crate) const REQUEST: Kind = Object(&[
    ("input", Required, Names(&Any)),
    ("webhook", Optional, Text),
    (
        "policy",
        Optional,
        Object(&[
            ("executionTimeout", Optional, Whole(SHORTEST_EXECUTION, LONGEST)),
            ("ttl", Optional, Whole(SHORTEST_LIFE, LONGEST)),
            ("lowPriority", Optional, Flag),
        ]),
    ),
]);
