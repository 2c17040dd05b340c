use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;

fn facts(status: Status) -> Facts {
    Facts {
        place: 1,
        status,
        submitted: 1,
        queued: 1,
        started: None,
        ended: None,
        retries: 0,
        broken: 0,
        bytes: 0,
        policy: Policy::default(),
    }
}

fn submission(input: Value) -> Submission {
    Submission {
        id: "a".into(),
        input,
        policy: Policy { execution: Some(7), ttl: None },
        store: Some(json!({ "accessSecret": "S3CR3T" })),
        webhook: Some("https://h/w?k=S3CR3T".into()),
    }
}

fn add(store: &mut Store, job: &Submission) {
    store.add(job, &job.input.to_string(), &facts(Status::InQueue)).unwrap();
}

#[test]
fn what_is_written_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let job = submission(json!({ "x": [1, "é"], "number": 0.1 }));
    add(&mut store, &job);
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    let all = store.all().unwrap();
    let expected = Facts { policy: job.policy, bytes: all[0].1.bytes, ..facts(Status::InQueue) };
    assert_eq!(all, [("a".to_owned(), expected)]);
    let asked = store.asked("a").unwrap().unwrap();
    assert_eq!((asked.input, asked.store), (job.input, job.store));
    assert!(store.asked("b").unwrap().is_none());
}

#[test]
fn only_its_owner_can_read_it_and_only_one_process_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new");
    let mut store = Store::open(&folder).unwrap();
    add(&mut store, &submission(json!({})));
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        files += 1;
    }
    assert!(files >= 3, "{files}");
    assert!(matches!(Store::open(&folder), Err(StoreError::Taken(_))));
    drop(store);
    Store::open(&folder).unwrap();
}

/// Everything in the folder, as bytes.
fn everything(folder: &Path) -> String {
    let read = |entry: io::Result<std::fs::DirEntry>| std::fs::read(entry.unwrap().path()).unwrap();
    let all: Vec<u8> = std::fs::read_dir(folder).unwrap().flat_map(read).collect();
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn secrets_of_a_job_that_is_over_are_nowhere_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let long = format!("https://h/{}?token=S3CR3T", "x/".repeat(20_000));
    add(&mut store, &submission(json!({ "dataset_url": long, "job_id": "j" })));
    assert!(everything(folder.path()).contains("S3CR3T"));
    let answer = Answered { output: Some(json!({ "a": 1 })), error: None };
    assert!(store.end("a", &facts(Status::Completed), &answer).unwrap());
    assert!(everything(folder.path()).contains("S3CR3T"), "the webhook cannot be told any more");
    let told = store.told("a").unwrap().unwrap();
    assert_eq!((told.webhook.as_str(), &told.input["job_id"]), ("https://h/w?k=S3CR3T", &json!("j")));
    assert_eq!(store.to_tell().unwrap(), ["a"]);
    store.webhook_is_done("a").unwrap();
    assert!(!everything(folder.path()).contains("S3CR3T"));
    assert!(store.told("a").unwrap().is_none() && store.is_forgotten("a").unwrap());
    assert_eq!(store.answered("a").unwrap(), answer);
}

#[test]
fn deleted_jobs_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    add(&mut store, &submission(json!({ "dataset_url": "https://h/?token=S3CR3T" })));
    store.delete(&["a".to_owned(), "b".to_owned()]).unwrap();
    assert!(store.all().unwrap().is_empty() && !everything(folder.path()).contains("S3CR3T"));
}

#[test]
fn files_of_a_newer_program_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
    drop(store);
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Newer(_))));
}

#[test]
fn what_is_no_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), "x".repeat(4096)).unwrap();
    let error = Store::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("queue.sqlite cannot be opened") && error.contains("moved away"), "{error}");
}
