//! The row of a job: those who sent it read there how far it is. Columns and words are those of the platform's table.

use std::time::Duration;

use http_body_util::Full;
use hyper::{
    Method,
    body::Bytes,
    header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde_json::{Map, Value, json};
use url::Url;

use super::Supabase;
use crate::{
    storage::{Said, is_temporary},
    telling::{
        channel::Listener,
        limits::TellingLimits,
        news::{End, Last, News},
        notes::Notes,
        request::{Answered, Heard, request, unheard},
    },
};

const TABLE: &str = "pipeline_training_jobs";
const PREFER: HeaderName = HeaderName::from_static("prefer");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The row of one job.
pub(in crate::telling) struct Row {
    project: Supabase,
    url: Url,
    notes: Notes,
}

// === impl Row ===

impl Row {
    /// `job_id` is the row's `id`.
    pub(in crate::telling) fn of(project: &Supabase, job_id: &str, notes: &Notes) -> Self {
        let mut url = project.address(&["rest", "v1", TABLE]);
        // What comes back shows whether there is such a row, and no more of it.
        url.query_pairs_mut().append_pair("id", &format!("eq.{job_id}")).append_pair("select", "id");
        Self { project: project.clone(), url, notes: notes.clone() }
    }
}

impl Listener for Row {
    fn name(&self) -> String {
        format!("the table {TABLE}")
    }

    fn message(&self, news: &News) -> Bytes {
        let columns = match news {
            News::Progress(output) => {
                let mut columns = columns(output);
                columns.extend([("status".into(), json!("running")), ("error_message".into(), Value::Null)]);
                columns
            }
            News::Last(last) => last_columns(last),
        };
        Value::Object(columns).to_string().into()
    }

    async fn send(&self, message: Bytes, most: Duration) -> Heard {
        let headers = self.project.headers().into_iter().chain([
            (CONTENT_TYPE, JSON),
            (ACCEPT, JSON),
            (PREFER, HeaderValue::from_static("return=representation")),
        ]);
        let answered = match request(Method::PATCH, &self.url, headers, Full::new(message)) {
            Ok(request) => self.project.line.ask(&self.url, request, true, most).await,
            Err(error) => Err(error),
        };
        let heard = match answered {
            Ok(answered) => meaning(&answered),
            Err(error) => unheard(error),
        };
        if let Heard::Never(why) = &heard {
            self.notes.take(format!("the table {TABLE} was not written: {why}"));
        }
        heard
    }

    fn patience(&self, limits: &TellingLimits) -> Duration {
        limits.last_of_row
    }
}

/// What the platform's table has of an output; what the output does not have stays as it is.
fn columns(output: &Value) -> Map<String, Value> {
    let metric = |name: &str| output["metrics"].get(name).filter(|number| number.is_number());
    let whole = |name: &str| output[name].as_u64().map(Value::from);
    // The table's progress is a whole number.
    let progress = output["progress"].as_f64().map(|progress| json!(progress.clamp(0.0, 100.0) as u64));
    let all = [
        ("progress", progress),
        ("current_epoch", whole("current_epoch")),
        ("current_step", whole("current_step")),
        ("current_loss", metric("training_loss_raw").or(metric("training_loss")).cloned()),
        ("tokens_per_second", metric("throughput").cloned()),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The end in one write: whoever waits for the status finds the path beside it.
fn last_columns(last: &Last) -> Map<String, Value> {
    let mut row = last.output.as_ref().map(columns).unwrap_or_default();
    let mut put = |name: &str, value: Value| drop(row.insert(name.to_owned(), value));
    match last.end {
        End::Completed => {
            put("status", json!("completed"));
            put("error_message", json!(last.no_archive));
            let loss = last.output.as_ref().and_then(|output| output["model_metadata"].get("final_loss"));
            if let Some(loss) = loss.filter(|loss| loss.is_number()) {
                put("final_loss", loss.clone());
            }
            if last.archive.is_some() || last.no_archive.is_some() {
                put("adapter_file_path", json!(last.archive));
            }
        }
        End::Failed => {
            put("status", json!("failed"));
            put("error_message", json!(last.error));
        }
        End::Cancelled => put("status", json!("cancelled")),
    }
    row
}

/// What the answer to a write means. Of the server's text nothing is repeated.
fn meaning(answered: &Answered) -> Heard {
    let Answered { status, headers, body } = answered;
    let said = Said::read(body);
    let inner = said.inner(*status);
    if (200..300).contains(status) {
        let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let none = match serde_json::from_slice(body) {
            Ok(Value::Array(rows)) => rows.is_empty(),
            _ => range.is_some_and(|range| range.starts_with("*/")),
        };
        return if none { no_row() } else { Heard::Yes };
    }
    if is_temporary(inner, &said) {
        return Heard::NotNow(format!("it answered HTTP {status}"));
    }
    let what = if said.has(&["PGRST204", "42703"]) {
        "it lacks one of the columns status, progress, current_epoch, current_step, current_loss, tokens_per_second, \
         final_loss, adapter_file_path, error_message"
    } else if said.has(&["PGRST205", "PGRST125", "42P01"]) {
        "there is no such table in the schema that the project shows"
    } else if said.has(&["22P02"]) {
        "the job_id is no id of its rows, or a column is of another type"
    } else if said.has(&["23514", "23502", "22003"]) {
        "a rule of the table refuses the values"
    } else if said.has(&["42501"]) {
        "the key may not write it"
    } else if matches!(status, 401 | 403) || said.has(&["PGRST301", "PGRST302", "PGRST303"]) {
        "the project does not know the key; check SUPABASE_SERVICE_ROLE_KEY"
    } else if *status == 404 {
        return no_row();
    } else {
        "the project refuses it"
    };
    Heard::Never(format!("HTTP {status}: {what}"))
}

fn no_row() -> Heard {
    Heard::Never("it has no row with the job's job_id as its id".into())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderMap;

    use super::*;

    fn last(end: End, output: Value) -> Last {
        Last { end, output: Some(output), error: None, archive: None, no_archive: None }
    }

    #[test]
    fn progress_becomes_the_tables_columns() {
        let output = json!({
            "status": "running", "stage": "training", "progress": 45.9, "current_epoch": 2, "current_step": 450,
            "metrics": { "training_loss": 1.5, "training_loss_raw": 1.25, "throughput": 125.5, "gradient_norm": 1.0 },
        });
        let expected = json!({
            "progress": 45, "current_epoch": 2, "current_step": 450, "current_loss": 1.25, "tokens_per_second": 125.5,
        });
        assert_eq!(Value::Object(columns(&output)), expected);
        // A fraction would break the whole row.
        let odd =
            json!({ "progress": "x", "current_epoch": 1.5, "metrics": { "training_loss": null, "throughput": 3 } });
        assert_eq!(Value::Object(columns(&odd)), json!({ "tokens_per_second": 3 }));
        assert_eq!(columns(&json!("text")), Map::new());
    }

    #[test]
    fn the_end_is_one_write_with_everything() {
        let output = json!({
            "status": "success", "progress": 100.0, "current_epoch": 3, "current_step": 1500,
            "metrics": { "training_loss": 0.5 }, "model_metadata": { "final_loss": 0.45 }, "model_files": { "a": "https://h" },
        });
        let mut done = Last { archive: Some("lora-models/adapters/j.tar.gz".into()), ..last(End::Completed, output) };
        let expected = json!({
            "progress": 100, "current_epoch": 3, "current_step": 1500, "current_loss": 0.5, "status": "completed",
            "error_message": null, "final_loss": 0.45, "adapter_file_path": "lora-models/adapters/j.tar.gz",
        });
        assert_eq!(Value::Object(last_columns(&done)), expected);
        (done.archive, done.no_archive) = (None, Some("no bucket".into()));
        let row = last_columns(&done);
        assert_eq!((&row["adapter_file_path"], &row["error_message"]), (&Value::Null, &json!("no bucket")));
        let failed = Last { error: Some("why".into()), ..last(End::Failed, json!({ "progress": 20.0 })) };
        let expected = json!({ "progress": 20, "status": "failed", "error_message": "why" });
        assert_eq!(Value::Object(last_columns(&failed)), expected);
        let stopped = Last { output: None, ..last(End::Cancelled, Value::Null) };
        assert_eq!(Value::Object(last_columns(&stopped)), json!({ "status": "cancelled" }));
    }

    #[test]
    fn every_answer_has_a_meaning_and_none_is_repeated() {
        let heard = |status: u16, range: Option<&'static str>, body: &str| {
            let headers: HeaderMap =
                range.map(|range| (CONTENT_RANGE, HeaderValue::from_static(range))).into_iter().collect();
            meaning(&Answered { status, headers, body: body.into() })
        };
        assert_eq!(heard(200, None, r#"[{"id":"j"}]"#), Heard::Yes);
        assert_eq!(heard(204, Some("0-0/*"), ""), Heard::Yes);
        assert_eq!(heard(204, None, ""), Heard::Yes);
        for none in [heard(200, None, "[]"), heard(204, Some("*/0"), ""), heard(404, None, "")] {
            assert_eq!(none, no_row());
        }
        assert_eq!(heard(503, None, "S3CR3T"), Heard::NotNow("it answered HTTP 503".into()));
        for (status, code, text) in [
            (400, "PGRST204", "columns"),
            (404, "PGRST205", "no such table"),
            (400, "22P02", "no id of its rows"),
            (400, "23514", "rule"),
            (403, "42501", "may not write"),
            (401, "PGRST301", "SUPABASE_SERVICE_ROLE_KEY"),
            (401, "S3CR3T", "SUPABASE_SERVICE_ROLE_KEY"),
            (409, "S3CR3T", "refuses"),
        ] {
            let body = json!({ "code": code, "message": "S3CR3T", "details": "S3CR3T", "hint": null }).to_string();
            let Heard::Never(why) = heard(status, None, &body) else { panic!("{code}") };
            assert!(why.contains(text) && !why.contains("S3CR3T"), "{code}: {why}");
        }
    }
}
