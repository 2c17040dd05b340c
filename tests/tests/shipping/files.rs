//! The JSON files.

use std::fs;

use serde_json::{Value, json as value};

use crate::{
    fields::Kind,
    json,
    lists::{ENDPOINT, HUB, HUB_TESTS, REQUEST, TEMPLATE, USUAL_LIFE, VOLUME},
    path,
};

/// Every file, and what it may hold.
const FILES: [(&str, &Kind); 8] = [
    (".runpod/hub.json", &HUB),
    (".runpod/tests.json", &HUB_TESTS),
    ("runpod/template.json", &TEMPLATE),
    ("runpod/endpoint.json", &ENDPOINT),
    ("runpod/network-volume.json", &VOLUME),
    ("runpod/job.json", &REQUEST),
    ("runpod/test_input.json", &REQUEST),
    ("runpod/demo_job.json", &REQUEST),
];
/// The shortest limit that is of use for training.
const ENOUGH: u64 = 12 * 3_600_000;

#[test]
fn every_file_has_the_fields_that_runpod_knows() {
    for (name, list) in FILES {
        assert_eq!(list.problems(&json(name), name), [""; 0]);
    }
}

#[test]
fn every_file_is_checked() {
    for folder in ["runpod", ".runpod"] {
        for entry in fs::read_dir(path(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = |(file, _): &(&str, &Kind)| file.ends_with(&format!("/{name}"));
            assert!(!name.ends_with(".json") || FILES.iter().any(known), "{folder}/{name} has no list of fields");
        }
    }
}

/// The Hub reads `.runpod`, people look into `runpod`.
#[test]
fn the_hubs_files_are_in_both_folders() {
    for name in ["hub.json", "tests.json"] {
        assert_eq!(json(&format!("runpod/{name}")), json(&format!(".runpod/{name}")));
        assert_eq!(fs::read_link(path(&format!("runpod/{name}"))).unwrap(), path_to(name), "{name}");
    }
}

fn path_to(name: &str) -> std::path::PathBuf {
    ["..", ".runpod", name].iter().collect()
}

#[test]
fn a_variable_of_the_hub_has_a_value_or_is_asked_for() {
    for variable in json(".runpod/hub.json")["config"]["env"].as_array().unwrap() {
        let input = &variable["input"];
        assert!(variable["value"].is_string() != input.is_object(), "{variable}");
        let number = |name: &str| input[name].as_f64();
        if let (Some(least), Some(most), Some(default)) = (number("min"), number("max"), number("default")) {
            assert!((least..=most).contains(&default), "{variable}");
        }
    }
}

/// RunPod refuses both at once.
#[test]
fn cuda_is_chosen_in_one_way() {
    let gpu = &json("runpod/endpoint.json")["gpu"];
    assert!(gpu["allowedCudaVersions"].is_null() != gpu["minCudaVersion"].is_null());
}

#[test]
fn the_endpoint_is_made_for_training() {
    let (endpoint, volume, template) =
        (json("runpod/endpoint.json"), json("runpod/network-volume.json"), json("runpod/template.json"));
    assert_eq!((&endpoint["type"], &endpoint["flashboot"]), (&value!("QUEUE"), &value!("OFF")));
    assert_eq!((&template["serverless"], &template["public"]), (&value!(true), &value!(false)));
    // A volume's workers are where it is, and nobody pays while there is no job.
    assert_eq!(endpoint["dataCenterIds"], value!([volume["dataCenter"]]));
    assert_eq!((endpoint["workers"]["min"].as_u64(), endpoint["gpu"]["count"].as_u64()), (Some(0), Some(1)));
    assert!(!template["image"].as_str().unwrap().ends_with(":latest"));
    assert!(template["ports"].is_null(), "a worker listens nowhere");
}

#[test]
fn limits_of_time_agree_and_are_long_enough() {
    let (endpoint, job) = (json("runpod/endpoint.json"), json("runpod/job.json"));
    let timeout = endpoint["timeout"].as_u64().unwrap();
    let told = environment()["BRIGHTRUN_EXECUTION_TIMEOUT"].as_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(timeout, told * 1000, "the worker is to know the endpoint's timeout");
    assert!(timeout >= ENOUGH);
    // A job without limits of its own is to reach the endpoint's, though it had to wait.
    assert!(timeout < USUAL_LIFE);
    let policy = |name: &str| job["policy"][name].as_u64().unwrap();
    assert!(policy("executionTimeout") >= timeout && policy("ttl") > policy("executionTimeout"));
}

/// What a worker of the endpoint is started with: the template's and, above it, the endpoint's own.
pub(crate) fn environment() -> Value {
    let mut all = json("runpod/template.json")["env"].clone();
    let own = json("runpod/endpoint.json")["env"].as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(own);
    all
}

#[test]
fn keys_are_secrets_of_runpods() {
    for (name, value) in environment().as_object().unwrap() {
        let value = value.as_str().unwrap();
        let is_secret = value.starts_with("{{ RUNPOD_SECRET_") && value.ends_with(" }}");
        let wants_secret = ["KEY", "SECRET", "TOKEN", "PASSWORD"].iter().any(|word| name.contains(word));
        assert_eq!(is_secret, wants_secret, "{name}");
    }
}
