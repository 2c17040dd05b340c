//! The pages for operators: their links lead somewhere, and the settings they name are read by somebody.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::{files::environment, json, path, text};

const GUIDE: &str = "runpod/README.md";
/// Pages that name settings.
const PAGES: [&str; 3] = [GUIDE, "docs/worker.md", "docs/delivery.md"];
/// What settings begin with.
const PREFIXES: [&str; 8] = ["BRIGHTRUN_", "MODEL_", "BUCKET_", "S3_", "AWS_", "RUNPOD_", "RUST_", "SUPABASE_"];
/// What others read: the platform, the log's filter by its own name for it, the guide's own shell, AWS's SDK.
const OF_OTHERS: [&str; 10] = [
    "RUNPOD_INIT_TIMEOUT",
    "RUST_LOG",
    "RUNPOD_API_KEY",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_DISABLED",
];

/// Everything that looks like the name of a setting.
fn settings(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let setting = |word: &&str| {
        let long = PREFIXES.iter().any(|prefix| word.len() > prefix.len() && word.starts_with(prefix));
        // Names of secrets are the operator's.
        long && !word.starts_with("RUNPOD_SECRET_") && !word.contains(|c: char| c.is_ascii_lowercase())
    };
    words.filter(setting).map(|word| word.trim_end_matches('_').to_owned()).collect()
}

/// The names of all variables in the worker's source, tests left out.
fn read_by_the_worker() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                let source = fs::read_to_string(&path).unwrap();
                let code = source.split("#[cfg(test)]").next().unwrap();
                found.extend(code.split('"').filter(|text| settings(text).contains(*text)).map(str::to_owned));
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&path("worker/src"), &mut found);
    assert!(found.contains("BRIGHTRUN_VOLUME") && found.contains("RUNPOD_WEBHOOK_GET_JOB"), "{found:?}");
    found
}

fn keys(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().unwrap().iter().map(|variable| variable["key"].as_str().unwrap().to_owned())
}

#[test]
fn every_setting_that_is_named_is_read() {
    let mut known = read_by_the_worker();
    known.extend(OF_OTHERS.map(str::to_owned));
    let mut named: BTreeSet<String> = PAGES.iter().flat_map(|page| settings(&text(page))).collect();
    let (hub, tests) = (json(".runpod/hub.json"), json(".runpod/tests.json"));
    named.extend(environment().as_object().unwrap().keys().cloned());
    named.extend(keys(&hub["config"]["env"]).chain(keys(&tests["config"]["env"])));
    for preset in hub["config"]["presets"].as_array().unwrap() {
        named.extend(preset["defaults"].as_object().unwrap().keys().cloned());
    }
    assert!(named.contains("MODEL_PATH") && named.contains("BUCKET_SECRET_ACCESS_KEY"), "{named:?}");
    let unread: Vec<&String> = named.difference(&known).collect();
    assert!(unread.is_empty(), "nobody reads {unread:?}");
}

/// A preset only fills in what the user is asked for.
#[test]
fn presets_are_of_variables_that_there_are() {
    let hub = json(".runpod/hub.json");
    let asked: BTreeSet<String> = keys(&hub["config"]["env"]).collect();
    for preset in hub["config"]["presets"].as_array().unwrap() {
        for name in preset["defaults"].as_object().unwrap().keys() {
            assert!(asked.contains(name), "{preset}");
        }
    }
}

/// Paths in `](…)`, without those of other sites and without places inside a page.
fn links(page: &str) -> Vec<String> {
    let text = text(page);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    local.map(|target| target.split('#').next().unwrap().to_owned()).collect()
}

#[test]
fn links_lead_somewhere() {
    for page in ["README.md", "runpod/README.md", "docs/worker.md", "docs/delivery.md", "docs/running.md"] {
        let folder = path(page).parent().unwrap().to_owned();
        let links = links(page);
        assert!(!links.is_empty(), "{page} has no links, or they are not found");
        for link in links {
            assert!(folder.join(&link).exists(), "{page} links to {link}");
        }
    }
}

#[test]
fn the_guide_has_ten_steps_and_warns_of_what_goes_wrong() {
    let guide = text(GUIDE);
    let steps: Vec<&str> =
        guide.lines().filter_map(|line| line.strip_prefix("## ")?.split_once(". ")).map(|(number, _)| number).collect();
    assert_eq!(steps, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
    let (_, wrong) = guide.split_once("## What goes wrong").unwrap();
    for warned in [
        "/workspace",
        "base_model",
        "presigning",
        "300000",
        "rest.runpod.io/v1",
        "lower case",
        ":latest",
        "30 minutes",
        "again and again",
    ] {
        assert!(wrong.contains(warned), "{warned}");
    }
}

/// Files that the guide sends are there.
#[test]
fn what_the_guide_sends_is_there() {
    let guide = text(GUIDE);
    let named = guide.split(|c: char| c.is_whitespace() || matches!(c, '`' | '@' | '(' | ')'));
    let files: BTreeSet<&str> = named.filter(|word| word.starts_with("runpod/") && word.ends_with(".json")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        assert!(path(file).is_file(), "{file}");
    }
}
