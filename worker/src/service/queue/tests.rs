use serde_json::json;

use super::{
    super::live::{MAX_LATE_BYTES, MOST_LATE},
    *,
};

fn queue(folder: &std::path::Path) -> Queue {
    let store = Store::open(folder).unwrap();
    Queue::open(store, Limits::default(), None, "w".into()).unwrap()
}

fn submitted(queue: &Queue, input: &Value) -> String {
    let body = json!({ "input": input }).to_string();
    let job = Submission::read(body.as_bytes(), false, false).unwrap();
    queue.submit(&job).unwrap();
    job.id
}

fn ended(queue: &Queue, output: Value) -> String {
    let id = submitted(queue, &json!({}));
    assert_eq!(queue.begin().unwrap().unwrap().job.id, id);
    queue.show(&id, json!("shown"));
    let answer = Answered { output: Some(output), error: None };
    queue.end(&id, &End { status: Status::Completed, answer }).unwrap();
    id
}

#[test]
fn what_ended_last_is_in_memory_and_the_rest_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path());
    let ids: Vec<String> = (0..=MOST_LATE).map(|number| ended(&queue, json!(number))).collect();
    assert!(queue.told_from_memory(&ids[0]).is_none() && queue.told_from_memory(&ids[1]).is_some());
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(queue.told(id).unwrap().unwrap()["output"], json!(number));
    }
    assert_eq!(queue.drain(&ids[0]).unwrap().1.len(), 0);
    assert_eq!(queue.drain(&ids[1]).unwrap().1, [json!({ "output": "shown" })]);
    let large = ended(&queue, json!("x".repeat(MAX_LATE_BYTES + 1)));
    assert!(queue.told_from_memory(&large).is_none());
    assert!(queue.told("none").unwrap().is_none());
}

#[test]
fn a_full_disk_refuses_what_is_new_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path());
    let first = submitted(&queue, &json!({ "x": 1 }));
    queue.store().fill_up();
    let job =
        Submission::read(&json!({ "input": "x".repeat(1 << 20) }).to_string().into_bytes(), false, false).unwrap();
    let refused = queue.submit(&job).unwrap_err();
    assert!(matches!(refused, Refusal::Store(_)) && refused.to_string().contains("room"), "{refused}");
    assert!(queue.told(&job.id).unwrap().is_none());
    assert_eq!(queue.begin().unwrap().unwrap().job.id, first);
    assert!(queue.begin().unwrap().is_none());
}
