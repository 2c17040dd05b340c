//! Checkpoints that are not what was written.

use super::{
    manifest::{ADAPTER, FILES, FINGERPRINT, MANIFEST, Manifest, OPTIMIZER, Sum},
    *,
};
use sha2::{Digest, Sha256};

const NEWEST: &str = "/run/step-00000020";

/// Checkpoints of steps 10 and 20.
fn two(subject: &mut Subject) -> Simulated {
    let storage = Simulated::new();
    let mut checkpoints = open(&storage, 2);
    save(&mut checkpoints, subject.captured(10)).unwrap();
    save(&mut checkpoints, subject.captured(20)).unwrap();
    storage
}

/// The note about the newest one, where the one before it is found.
fn note(storage: &Simulated, place: &str) -> String {
    let found = open(storage, 2).latest().unwrap();
    assert_eq!(found.checkpoint.map(|checkpoint| checkpoint.step), Some(10), "{place}");
    assert_eq!(found.notes.len(), 1, "{place}");
    found.notes[0].clone()
}

#[test]
fn every_flipped_bit_of_every_file_is_found_and_the_file_is_named() {
    let mut subject = Subject::new(OptimizerKind::AdamW8bit);
    let storage = two(&mut subject);
    for name in FILES.into_iter().chain([MANIFEST]) {
        let path = Path::new(NEWEST).join(name);
        for bit in 0..8 * storage.read(&path).len() {
            let flip = |bytes: &mut Vec<u8>| bytes[bit / 8] ^= 1 << (bit % 8);
            storage.edit(&path, flip);
            let note = note(&storage, &format!("{name}, bit {bit}"));
            assert!(note.contains(&format!("{NEWEST}/{name}: damaged")), "{note}");
            storage.edit(&path, flip);
        }
    }
    assert_eq!(found(open(&storage, 2).latest().unwrap()).step, 20);
}

#[test]
fn files_that_are_cut_longer_swapped_or_missing_are_found() {
    let mut subject = Subject::new(OptimizerKind::AdamW);
    let storage = two(&mut subject);
    for name in FILES.into_iter().chain([MANIFEST]) {
        let path = Path::new(NEWEST).join(name);
        let whole = storage.read(&path);
        for end in [0, 1, whole.len() / 2, whole.len().saturating_sub(1)] {
            storage.edit(&path, |bytes| bytes.truncate(end));
            if end < whole.len() {
                assert!(note(&storage, name).contains(name));
            }
            storage.edit(&path, |bytes| bytes.clone_from(&whole));
        }
        storage.edit(&path, |bytes| bytes.push(b' '));
        assert!(note(&storage, name).contains(name));
        storage.edit(&path, |bytes| bytes.clone_from(&whole));
        let other = storage.read(&Path::new("/run/step-00000010").join(name));
        if other != whole {
            storage.edit(&path, |bytes| bytes.clone_from(&other));
            assert!(note(&storage, name).contains(name));
            storage.edit(&path, |bytes| bytes.clone_from(&whole));
        }
        let copy = storage.copy();
        copy.remove_file(&path);
        assert!(note(&copy, name).contains(name));
    }
    // A checkpoint under the name of another step.
    storage.rename(Path::new(NEWEST), Path::new("/run/step-00000090")).unwrap();
    assert!(note(&storage, "renamed").contains("step 20"));
}

#[test]
fn damaged_ones_do_not_count_and_go_once_there_is_a_new_one() {
    let mut subject = Subject::new(OptimizerKind::AdamW);
    let storage = two(&mut subject);
    storage.edit(&Path::new(NEWEST).join(ADAPTER), |bytes| bytes[100] ^= 1);
    let mut checkpoints = open(&storage, 2);
    assert_eq!(checkpoints.latest().unwrap().checkpoint.unwrap().step, 10);
    assert_eq!(steps(&storage), ["step-00000010", "step-00000020"]);
    save(&mut checkpoints, subject.captured(15)).unwrap();
    assert_eq!(steps(&storage), ["step-00000010", "step-00000015"]);
    assert_eq!(found(checkpoints.latest().unwrap()).step, 15);
    // Where none is whole, every one is named.
    for name in steps(&storage) {
        storage.edit(&Path::new(RUN).join(name).join(OPTIMIZER), Vec::clear);
    }
    let found = open(&storage, 2).latest().unwrap();
    assert!(found.checkpoint.is_none() && found.notes.len() == 2, "{:?}", found.notes);
}

/// Puts other content into a file of the newest checkpoint, with a manifest that vouches for it.
fn forge(storage: &Simulated, name: &str, content: &[u8]) {
    let path = Path::new(NEWEST).join(MANIFEST);
    let mut manifest = Manifest::parse(&storage.read(&path)).unwrap();
    let index = FILES.iter().position(|file| *file == name).unwrap();
    manifest.sums[index] = Sum { bytes: content.len() as u64, sha256: hex::encode(Sha256::digest(content)) };
    storage.edit(&path, |bytes| *bytes = manifest.text().unwrap().into_bytes());
    storage.edit(&Path::new(NEWEST).join(name), |bytes| *bytes = content.to_vec());
}

#[test]
fn forged_files_are_refused_and_nothing_changes() {
    let mut subject = Subject::new(OptimizerKind::AdamW);
    let storage = two(&mut subject);
    let path = |name: &str| Path::new(NEWEST).join(name);
    let (adapter, optimizer) = (storage.read(&path(ADAPTER)), storage.read(&path(OPTIMIZER)));
    let header_end = 8 + u64::from_le_bytes(*optimizer.first_chunk().unwrap()) as usize;
    let huge = [&u64::MAX.to_le_bytes()[..], &adapter[8..]].concat();
    let mut updates = optimizer.clone();
    updates[header_end..header_end + 8].fill(0xff);
    let renamed = String::from_utf8_lossy(&adapter[8..]).replacen("lora_A", "lora_X", 1);
    let forgeries: [(&str, Vec<u8>, &str); 8] = [
        (ADAPTER, Vec::new(), "adapter.safetensors"),
        (ADAPTER, vec![7; 5], "adapter.safetensors"),
        (ADAPTER, huge, "header: found a length of"),
        (ADAPTER, [&adapter[..8], renamed.as_bytes()].concat(), "lora_A: missing"),
        (ADAPTER, [&adapter[..], &[0]].concat(), "expected"),
        (ADAPTER, adapter[..adapter.len() - 4].to_vec(), "expected"),
        (OPTIMIZER, adapter.clone(), "updates: missing"),
        (OPTIMIZER, updates, "updates in 20 steps"),
    ];
    for (name, content, expected) in forgeries {
        forge(&storage, name, &content);
        let checkpoint = found(open(&storage, 2).latest().unwrap());
        subject.fill(1);
        let before = subject.bits();
        let error = checkpoint.restore(&subject.adapters, &mut subject.optimizer).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} / {expected}");
        assert!(subject.bits() == before, "{error}");
        forge(&storage, ADAPTER, &adapter);
        forge(&storage, OPTIMIZER, &optimizer);
    }
    forge(&storage, FINGERPRINT, b"[1]");
    assert!(note(&storage, FINGERPRINT).contains(FINGERPRINT));
}

#[test]
fn a_file_that_changes_after_it_was_checked_is_not_used() {
    let mut subject = Subject::new(OptimizerKind::AdamW);
    let storage = two(&mut subject);
    for name in [ADAPTER, OPTIMIZER] {
        let checkpoint = found(open(&storage, 2).latest().unwrap());
        let path = Path::new(NEWEST).join(name);
        let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
        storage.edit(&path, flip);
        let error = checkpoint.restore(&subject.adapters, &mut subject.optimizer).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("changed while it was read"), "{error}");
        storage.edit(&path, flip);
    }
}
