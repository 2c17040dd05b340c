//! What is given to RunPod: its files have the fields that the platform knows and no others, say the same where they say
//! the same thing, and name only settings that somebody reads. The lists of fields are those of RunPod's Hub guide and of
//! its REST API v2, of August 2026.

mod fields;
mod files;
mod guide;
mod image;
mod lists;

use std::{fs, path::PathBuf};

use serde_json::Value;

/// A file of the repository.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn json(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
