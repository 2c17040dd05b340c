use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn content() -> Content {
    Content { validator: Some(Validator::ETag("\"a\"".into())), total: Some(10), gzip: false }
}

fn open(target: &Path, place: &str) -> Partial {
    Partial::open(target, place).unwrap().unwrap()
}

/// Leaves "hello" for a later fetch.
fn leave(target: &Path) {
    let mut partial = open(target, "place");
    partial.restart(content()).unwrap();
    partial.append(b"hello").unwrap();
    partial.keep().unwrap();
}

#[test]
fn a_file_arrives_whole_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("d.jsonl");
    leave(&target);
    assert_eq!(names(folder.path()), ["d.jsonl.part", "d.jsonl.part.json"]);
    let mut partial = open(&target, "place");
    assert_eq!((partial.bytes(), &partial.content), (5, &content()));
    partial.append(b"world").unwrap();
    let Finished::Whole { bytes: 10, sha256 } = partial.finish(100, &|| false).unwrap() else { panic!() };
    assert_eq!(sha256[..], Sha256::digest(b"helloworld")[..]);
    assert_eq!((fs::read(&target).unwrap(), names(folder.path())), (b"helloworld".to_vec(), vec!["d.jsonl".into()]));
}

#[test]
fn bytes_that_are_not_what_the_note_says_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("d");
    let part = folder.path().join("d.part");
    leave(&target);
    assert_eq!(open(&target, "another place").bytes(), 0);
    leave(&target);
    fs::write(&part, "hellO and more").unwrap();
    assert_eq!(open(&target, "place").bytes(), 0);
    leave(&target);
    fs::write(&part, "hell").unwrap();
    assert_eq!(open(&target, "place").bytes(), 0);
    leave(&target);
    fs::write(folder.path().join("d.part.json"), "{").unwrap();
    assert_eq!(open(&target, "place").bytes(), 0);
    // More bytes than noted were not synced, and are dropped.
    leave(&target);
    fs::write(&part, "hello?").unwrap();
    let partial = open(&target, "place");
    assert_eq!((partial.bytes(), fs::metadata(&part).unwrap().len()), (5, 5));
}

#[test]
fn what_nobody_can_continue_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("d");
    let mut partial = open(&target, "place");
    partial.restart(Content { validator: None, ..content() }).unwrap();
    partial.append(b"hello").unwrap();
    partial.keep().unwrap();
    assert!(names(folder.path()).is_empty());
    leave(&target);
    drop(open(&target, "place"));
    assert_eq!(names(folder.path()).len(), 2);
    open(&target, "place").discard().unwrap();
    assert!(names(folder.path()).is_empty());
}

#[test]
fn only_one_writes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("d");
    let first = open(&target, "place");
    assert!(Partial::open(&target, "place").unwrap().is_none());
    drop(first);
    assert!(Partial::open(&target, "place").unwrap().is_some());
    assert!(Partial::open(Path::new("/"), "place").is_err());
}
