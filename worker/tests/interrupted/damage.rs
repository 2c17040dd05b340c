//! A flipped bit in a checkpoint: it is found, the file is named, and the run goes on from the one before.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    place::{Place, Said, quick_with},
    portrait::Portrait,
    shim::{Action, Call},
};

const FILES: [&str; 6] = [
    "adapter.safetensors",
    "fingerprint.json",
    "manifest.json",
    "metrics.jsonl",
    "optimizer.safetensors",
    "progress.json",
];

/// A run that was killed with the checkpoints of all its steps, and what it leaves when nobody kills it.
fn killed() -> (Place, Portrait) {
    let parameters = quick_with(json!({ "keep_checkpoints": 3 }));
    let place = Place::new(parameters.clone());
    let said = place.train_until(&Call::first("mkdir out/adapter"), Action::Kill);
    assert_eq!(said.code, None, "{}", said.stderr);
    assert_eq!(place.checkpoints(), ["step-00000001", "step-00000002", "step-00000003"]);
    (place, Place::unbroken(parameters))
}

/// Flips a bit of the byte at a share of a file's length.
fn flip(place: &Place, checkpoint: &str, file: &str, share: f64) -> String {
    let name = format!("checkpoints/{checkpoint}/{file}");
    let path = place.out().join(&name);
    let mut bytes = fs::read(&path).unwrap();
    let at = ((bytes.len() - 1) as f64 * share) as usize;
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
    format!("out/{name}")
}

/// Goes on; the files are those of an unbroken run, with a warning for each damaged file and none besides.
fn goes_on(place: &Place, unbroken: &Portrait, damaged: &[String], about: &str) -> Said {
    let said = place.finish();
    let now = place.portrait();
    let new: Vec<&String> = now.warnings.iter().filter(|warning| !unbroken.warnings.contains(warning)).collect();
    for file in damaged {
        let named =
            |text: &str| text.contains(file.as_str()) && text.contains("damaged") && text.contains("passed over");
        assert!(new.iter().any(|warning| named(warning)), "{about}: {file} is not named in {new:#?}");
        assert!(said.stderr.lines().any(named), "{about}: {}", said.stderr);
    }
    assert!(new.iter().all(|warning| damaged.iter().any(|file| warning.contains(file.as_str()))), "{about}: {new:#?}");
    now.assert_same_files_but(unbroken, &["README.md"], about);
    said
}

#[test]
fn a_flipped_bit_in_the_newest_is_named_and_the_one_before_is_used() {
    let (killed, unbroken) = killed();
    for file in FILES {
        for share in [0.0, 0.5, 1.0] {
            let place = killed.copy();
            let damaged = flip(&place, "step-00000003", file, share);
            let said = goes_on(&place, &unbroken, &[damaged], &format!("{file} at {share}"));
            said.assert_says(&["going on after step 2"]);
        }
    }
}

#[test]
fn missing_and_cut_files_are_damage_too() {
    let (killed, unbroken) = killed();
    for file in FILES {
        let name = format!("out/checkpoints/step-00000003/{file}");
        let cut: [&dyn Fn(&Path); 2] = [&|path| fs::remove_file(path).unwrap(), &|path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }];
        for cut in cut {
            let place = killed.copy();
            cut(&place.path().join(&name));
            let said = place.finish();
            said.assert_says(&["going on after step 2", &name]);
            place.portrait().assert_same_files_but(&unbroken, &["README.md"], &name);
        }
    }
}

#[test]
fn where_all_are_damaged_the_run_starts_over() {
    let (killed, unbroken) = killed();
    for file in FILES {
        let checkpoints = killed.checkpoints();
        let place = killed.copy();
        let damaged: Vec<String> = checkpoints.iter().map(|checkpoint| flip(&place, checkpoint, file, 0.3)).collect();
        let said = goes_on(&place, &unbroken, &damaged, file);
        assert!(!said.stderr.contains("going on after"), "{}", said.stderr);
        said.assert_says(&["after step 1: "]);
    }
}

#[test]
fn a_damaged_best_one_is_told_and_the_last_one_is_delivered() {
    let (place, _) = killed();
    flip(&place, "step-00000002", "adapter.safetensors", 0.5);
    let said = place.finish();
    said.assert_says(&["step-00000002/adapter.safetensors", "the adapter of step 2, the best one, was not kept"]);
    assert_eq!(crate::portrait::adapter_step(&place.out()), 3);
}
