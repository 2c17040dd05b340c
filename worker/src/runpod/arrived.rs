//! The jobs in an answer of the platform, also those that cannot be read: whoever sent one is to hear why, and nobody else would
//! tell them. The platform would give it to one worker after another until it gives up.

use serde_json::{Value, json};

use crate::work::Job;

/// A job that has come.
#[derive(Debug)]
pub(super) struct Arrived {
    /// What the platform calls it.
    pub(super) id: String,
    /// The job, or what its sender is told because it cannot be read.
    pub(super) job: Result<Job, String>,
}

/// What an answer holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) jobs: Vec<Arrived>,
    /// So many have no name by which they could be answered.
    pub(super) nameless: usize,
    /// It is not JSON, and no job can be seen in it.
    pub(super) garbled: bool,
}

// === impl Contents ===

impl Contents {
    /// Reads an answer: an object is one job, a list several, and nothing is none.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut contents = Self::default();
        match serde_json::from_slice(body) {
            Ok(Value::Array(values)) => values.into_iter().for_each(|value| contents.take(Job::read(value))),
            Ok(Value::Null) => {}
            Ok(value) => contents.take(Job::read(value)),
            Err(_) => elements(body).into_iter().for_each(|element| contents.rescue(element)),
        }
        contents
    }

    fn take(&mut self, job: Option<Job>) {
        match job {
            Some(job) => self.jobs.push(Arrived { id: job.id.clone(), job: Ok(job) }),
            None => self.nameless += 1,
        }
    }

    /// One element of an answer that is not JSON as a whole. The others may be.
    fn rescue(&mut self, element: &[u8]) {
        let error = match serde_json::from_slice(element) {
            Ok(value) => return self.take(Job::read(value)),
            Err(error) => error,
        };
        // What is no name of a job is none here either.
        match name_in(element).and_then(|id| Job::read(json!({ "id": id }))) {
            Some(Job { id, .. }) => {
                let why = format!(
                    "the job cannot be read, its JSON is wrong: {error}; send it again with finite numbers, and with less \
                     nesting where that is the cause"
                );
                self.jobs.push(Arrived { id, job: Err(why) });
            }
            None => self.garbled = true,
        }
    }
}

/// Where in a text one is that may be wrong: how deep, and whether within a string.
#[derive(Default)]
struct Position {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

// === impl Position ===

impl Position {
    /// One byte further.
    fn pass(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// The elements of a list; what is no list is one. Nothing has none.
fn elements(body: &[u8]) -> Vec<&[u8]> {
    let body = body.trim_ascii();
    let Some(list) = body.strip_prefix(b"[") else { return Vec::from_iter((!body.is_empty()).then_some(body)) };
    let list = list.strip_suffix(b"]").unwrap_or(list);
    let mut position = Position::default();
    list.split(|byte| {
        let between = *byte == b',' && position.depth == 0 && !position.in_string;
        position.pass(*byte);
        between
    })
    .collect()
}

/// What an object that is not JSON has under `id`, a text or a number. No more of it is looked at than it takes: what is wrong
/// with it may be how deep it is.
fn name_in(object: &[u8]) -> Option<Value> {
    let mut position = Position::default();
    let mut begin = 0;
    let mut found = None;
    for (index, byte) in object.iter().enumerate() {
        let opens = *byte == b'"' && !position.in_string;
        position.pass(*byte);
        if position.depth != 1 || *byte != b'"' {
            continue;
        }
        if opens {
            begin = index;
        } else if !position.in_string && object.get(begin..=index) == Some(br#""id""#) {
            let value = object.get(index + 1..).unwrap_or_default().trim_ascii_start();
            // It is a name only before a colon.
            found = value.strip_prefix(b":").and_then(first_value).or(found);
        }
    }
    found
}

/// The text or the number that this begins with.
fn first_value(text: &[u8]) -> Option<Value> {
    let text = text.trim_ascii_start();
    let mut position = Position::default();
    let end = text.iter().position(|byte| {
        let ends = b",}]".contains(byte) && !position.in_string;
        position.pass(*byte);
        ends
    });
    let value = serde_json::from_slice(text.get(..end.unwrap_or(text.len()))?).ok()?;
    matches!(value, Value::String(_) | Value::Number(_)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> (Vec<(String, bool)>, usize, bool) {
        let contents = Contents::read(body.as_bytes());
        let jobs = contents.jobs.into_iter().map(|arrived| (arrived.id, arrived.job.is_ok())).collect();
        (jobs, contents.nameless, contents.garbled)
    }

    fn one(id: &str, readable: bool) -> (Vec<(String, bool)>, usize, bool) {
        (vec![(id.to_owned(), readable)], 0, false)
    }

    #[test]
    fn one_or_several_jobs_come_at_once() {
        let hub =
            r#"{"delayTime": 0, "error": "", "id": "0", "input": 7, "retries": 0, "status": 200, "s3Config": {}}"#;
        assert_eq!(read(hub), one("0", true));
        assert_eq!(Contents::read(hub.as_bytes()).jobs[0].job.as_ref().unwrap().input, json!(7));
        let several = r#"[{"id": "a", "input": {"x": 1}}, {"id": 5}, {"input": {}}, "x", {"id": ""}]"#;
        assert_eq!(read(several), (vec![("a".to_owned(), true), ("5".to_owned(), true)], 3, false));
        for nothing in ["null", "[]", "", " \r\n"] {
            assert_eq!(read(nothing), (vec![], 0, false), "{nothing:?}");
        }
    }

    #[test]
    fn a_job_that_cannot_be_read_keeps_its_name() {
        let deep = format!(r#"{{"input": {}{}, "id": "j-u1"}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for body in [
            r#"{"id": "j-u1", "input": {"dataset_url": NaN}}"#,
            r#"{"input": {"id": "inner", "learning_rate": -Infinity}, "id" : "j-u1"}"#,
            r#"{"id":"j-u1","input":{"job_id":"h","hyperparameters":{"learning_rate":1e400}}}"#,
            r#"{"a\"id\":\"no": 1e400, "note": "id", "id": "j\u002du1"}"#,
            r#"{"id": "j-u1", "input": {"cut": "o"#,
            deep.as_str(),
        ] {
            assert_eq!(read(body), one("j-u1", false), "{body:.60}");
        }
        assert_eq!(read(r#"{"id": 7, "x": NaN}"#), one("7", false));
        let why = Contents::read(br#"{"id": "j", "token": "S3CR3T", "x": NaN}"#).jobs.remove(0).job.unwrap_err();
        assert!(why.contains("its JSON is wrong") && !why.contains("S3CR3T"), "{why}");
    }

    #[test]
    fn those_beside_it_are_read() {
        let body = r#"[{"id": "a", "input": {"x": "},{"}}, {"id": "b", "input": NaN}, {"id": "c"}]"#;
        let jobs = [("a", true), ("b", false), ("c", true)].map(|(id, good)| (id.to_owned(), good));
        assert_eq!(read(body), (jobs.to_vec(), 0, false));
    }

    #[test]
    fn what_is_no_job_is_none() {
        for body in
            ["<html>", "not json", "{", r#"{"input": NaN}"#, r#"{"id": [1], "x": NaN}"#, r#"{"x": NaN, "y": "id"}"#]
        {
            assert_eq!(read(body), (vec![], 0, true), "{body}");
        }
    }
}
