use std::{sync::Barrier, time::Duration};

use proptest::prelude::*;

use super::{key::tests::key, *};
use crate::dataset::finding::{Finding, FindingKind};

/// Documents with these many tokens; every third token is learnt.
fn documents(lengths: &[u32]) -> Vec<(Document, Vec<u32>)> {
    let mut offset = 0;
    let mut make = |(index, &length): (usize, &u32)| {
        let learnt = |i: u32| if i % 3 == 2 { LEARNT } else { 0 };
        let tokens: Vec<u32> = (0..length).map(|i| (index as u32 * 1000 + i) | learnt(i)).collect();
        let document = Document {
            line: index as u64 + 1,
            conversation: index as u64 / 2,
            offset,
            tokens: length,
            targets: length / 3,
            whole_tokens: length + 1,
            cut_turns: 0,
        };
        offset += u64::from(length);
        (document, tokens)
    };
    lengths.iter().enumerate().map(&mut make).collect()
}

fn facts() -> FileFacts {
    let mut facts = FileFacts { sha256: "ab".into(), lines: 3, tokens: 12, ..FileFacts::default() };
    facts.findings.push(Finding::new(FindingKind::HistoryCut, 2, "cut"));
    facts
}

fn write(cache: &Path, lengths: &[u32]) -> TokenStore {
    let mut writer = StoreWriter::begin(cache).unwrap();
    for (document, tokens) in documents(lengths) {
        writer.push(document, &tokens).unwrap();
    }
    writer.finish(&key(), &facts()).unwrap()
}

fn compare(store: &TokenStore, lengths: &[u32]) {
    let expected = documents(lengths);
    assert_eq!(store.documents(), expected.iter().map(|(document, _)| *document).collect::<Vec<_>>());
    for (index, (_, tokens)) in expected.iter().enumerate() {
        let sequence = store.sequence(index).unwrap();
        assert_eq!(sequence.valid, tokens.len());
        assert_eq!(sequence.tokens, tokens.iter().map(|token| token & !LEARNT).collect::<Vec<_>>());
        let label = |token: &u32| if token & LEARNT == 0 { IGNORED } else { i64::from(token & !LEARNT) };
        assert_eq!(sequence.labels, tokens.iter().map(label).collect::<Vec<_>>());
    }
    assert!(store.sequence(expected.len()).is_err());
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_read_is_what_was_written(lengths in prop::collection::vec(1u32..3000, 0..8)) {
        let cache = tempfile::tempdir().unwrap();
        compare(&write(cache.path(), &lengths), &lengths);
        prop_assert_eq!(names(cache.path()), [key().name()]);
        match TokenStore::look_up(cache.path(), &key()).unwrap() {
            Lookup::Present(store, read) => {
                compare(&store, &lengths);
                prop_assert_eq!(*read, facts());
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn any_flipped_byte_of_any_file_is_noticed() {
    let cache = tempfile::tempdir().unwrap();
    write(cache.path(), &[5, 4]);
    let folder = cache.path().join(key().name());
    assert_eq!(names(&folder), [DOCUMENTS, FACTS, MANIFEST, TOKENS]);
    for name in names(&folder) {
        let path = folder.join(&name);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, damaged).unwrap();
            match TokenStore::look_up(cache.path(), &key()).unwrap() {
                // A manifest with another sum in it blames the file that has this one.
                Lookup::Damaged(reason) => {
                    assert!(name == MANIFEST || reason.contains(&name), "byte {at} of {name}: {reason}");
                }
                other => panic!("byte {at} of {name}: {other:?}"),
            }
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(TokenStore::look_up(cache.path(), &key()).unwrap(), Lookup::Damaged(_)));
        fs::remove_file(&path).unwrap();
        assert!(matches!(TokenStore::look_up(cache.path(), &key()).unwrap(), Lookup::Damaged(_)));
        fs::write(&path, bytes).unwrap();
    }
    assert!(matches!(TokenStore::look_up(cache.path(), &key()).unwrap(), Lookup::Present(..)));
}

#[test]
fn a_store_of_another_key_under_this_name_is_not_believed() {
    let cache = tempfile::tempdir().unwrap();
    write(cache.path(), &[5]);
    let other = Key { end_of_text: Some(9), ..key() };
    assert!(matches!(TokenStore::look_up(cache.path(), &other).unwrap(), Lookup::Absent));
    fs::rename(cache.path().join(key().name()), cache.path().join(other.name())).unwrap();
    assert!(matches!(TokenStore::look_up(cache.path(), &other).unwrap(), Lookup::Damaged(_)));
}

#[test]
fn a_damaged_store_is_replaced_and_so_is_a_file_of_its_name() {
    let cache = tempfile::tempdir().unwrap();
    let place = cache.path().join(key().name());
    fs::write(&place, "a file").unwrap();
    compare(&write(cache.path(), &[5, 4]), &[5, 4]);
    fs::write(place.join(TOKENS), "damaged").unwrap();
    compare(&write(cache.path(), &[5, 4]), &[5, 4]);
    fs::remove_file(place.join(MANIFEST)).unwrap();
    compare(&write(cache.path(), &[5, 4]), &[5, 4]);
    assert_eq!(names(cache.path()), [key().name()]);
}

#[test]
fn a_writer_that_gives_up_leaves_nothing_and_one_that_was_killed_does_no_harm() {
    let cache = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::begin(cache.path()).unwrap();
    writer.push(documents(&[5])[0].0, &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(names(cache.path()).len(), 1);
    // As if it had been killed: nothing is dropped.
    std::mem::forget(writer);
    drop(StoreWriter::begin(cache.path()).unwrap());
    let left = names(cache.path());
    assert_eq!(left.len(), 1);
    assert!(matches!(TokenStore::look_up(cache.path(), &key()).unwrap(), Lookup::Absent));
    compare(&write(cache.path(), &[5, 4]), &[5, 4]);

    // A day later it is cleared away, the store is not.
    let age = |path: &Path| {
        let file = File::open(path).unwrap();
        let then = file.metadata().unwrap().modified().unwrap() - Duration::from_secs(25 * 60 * 60);
        file.set_modified(then).unwrap();
    };
    let folder = cache.path().join(&left[0]);
    age(&folder);
    drop(StoreWriter::begin(cache.path()).unwrap());
    assert!(folder.exists(), "its files are new");
    names(&folder).iter().for_each(|name| age(&folder.join(name)));
    age(&cache.path().join(key().name()));
    drop(StoreWriter::begin(cache.path()).unwrap());
    assert_eq!(names(cache.path()), [key().name()]);
}

#[test]
fn writers_of_one_key_at_the_same_time_all_get_a_whole_store() {
    let cache = tempfile::tempdir().unwrap();
    let lengths = [700, 20, 3];
    // The place is taken by something damaged, so that they also meet while they clear it away.
    fs::create_dir(cache.path().join(key().name())).unwrap();
    fs::write(cache.path().join(key().name()).join(TOKENS), "damaged").unwrap();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                compare(&write(cache.path(), &lengths), &lengths);
            });
        }
    });
    assert_eq!(names(cache.path()), [key().name()]);
}

#[test]
fn an_empty_store_has_nothing_to_read() {
    let store = TokenStore::empty();
    assert!(store.documents().is_empty());
    assert!(store.sequence(0).unwrap_err().to_string().contains("there is no document 0; the dataset has 0"));
}
