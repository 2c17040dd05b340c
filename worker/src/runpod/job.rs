//! A job as the platform hands it over.

use serde_json::{Map, Value};

/// Longest name of a job that is accepted; the platform's have about 40 letters.
const MAX_ID_BYTES: usize = 256;

/// A job as the platform hands it over. What is in it is not checked yet.
#[derive(Clone, PartialEq)]
pub struct Job {
    /// Its name at the platform.
    pub id: String,
    /// What is asked for; `{}` where the platform has left an empty one out.
    pub input: Value,
    /// Time limits, where the job came with any.
    pub policy: Value,
}

// === impl Job ===

impl Job {
    /// The jobs of an answer: an object is one, an array several. What has no name is none, since nobody could answer it; the
    /// second value counts such objects.
    pub(super) fn all(answer: Value) -> (Vec<Self>, usize) {
        let found = match answer {
            Value::Array(values) => values,
            Value::Null => Vec::new(),
            value => vec![value],
        };
        let count = found.len();
        let jobs: Vec<Self> = found.into_iter().filter_map(Self::read).collect();
        let nameless = count - jobs.len();
        (jobs, nameless)
    }

    fn read(value: Value) -> Option<Self> {
        let Value::Object(mut fields) = value else { return None };
        let id = match fields.remove("id") {
            Some(Value::String(id)) => id,
            Some(Value::Number(number)) => number.to_string(),
            _ => return None,
        };
        let input = fields.remove("input").filter(|input| !input.is_null()).unwrap_or(Value::Object(Map::new()));
        let policy = fields.remove("policy").unwrap_or(Value::Null);
        let usable = (1..=MAX_ID_BYTES).contains(&id.len()) && !id.chars().any(char::is_control);
        usable.then_some(Self { id, input, policy })
    }
}

/// Inputs hold signed links.
impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Job({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_input_that_was_left_out_is_an_empty_one() {
        for value in [json!({"id": "a"}), json!({"id": "a", "input": null}), json!({"id": "a", "input": {}})] {
            let (jobs, nameless) = Job::all(value);
            assert_eq!((jobs.len(), nameless, &jobs[0].input), (1, 0, &json!({})));
        }
    }

    #[test]
    fn one_or_several_come_at_once() {
        let text =
            r#"{"delayTime": 0, "error": "", "id": "0", "input": 7, "retries": 0, "status": 200, "s3Config": {}}"#;
        let hub = Job::all(serde_json::from_str(text).unwrap());
        assert_eq!((hub.0[0].id.as_str(), &hub.0[0].input), ("0", &json!(7)));
        let (jobs, nameless) =
            Job::all(json!([{"id": "a", "input": {"x": 1}}, {"id": 5}, {"input": {}}, "x", {"id": ""}]));
        let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
        assert_eq!((ids, nameless), (vec!["a", "5"], 3));
        assert_eq!(Job::all(Value::Null), (vec![], 0));
    }

    #[test]
    fn what_is_asked_for_is_not_shown() {
        let (jobs, _) = Job::all(json!({"id": "a", "input": {"dataset_url": "https://h/x?token=S3CR3T"}}));
        assert_eq!(format!("{:?}", jobs[0]), "Job(a)");
    }
}
