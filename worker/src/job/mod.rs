//! The door: a platform's request in, a checked job or all its problems out.

mod callback;
mod fields;
mod gpu;
mod parameters;
mod source;
mod uploads;

use std::collections::BTreeMap;

use brightrun_trainer::run::Parameters;
use serde_json::{Map, Value};
use url::Url;

pub(crate) use callback::of as callback_of;
pub(crate) use fields::Problem;
use fields::{Findings, Object};
pub(crate) use gpu::GpuRequest;
pub(crate) use parameters::{ParameterFlags, schema as parameter_schema, table as parameter_table};
pub(crate) use source::{BaseModel, Dataset};

use crate::redacted::Redacted;

/// Longest name of a job.
const MAX_JOB_ID: usize = 128;
/// RunPod's own keys beside `input`; they are not for the worker.
const ENVELOPE: [&str; 4] = ["id", "webhook", "policy", "s3Config"];

/// A job that can be run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JobSpec {
    /// Its name, safe as the name of a folder.
    pub(crate) job_id: String,
    /// What is fine-tuned.
    pub(crate) base_model: BaseModel,
    /// What it is fine-tuned on.
    pub(crate) dataset: Dataset,
    /// What it is measured with, where that is a file of its own.
    pub(crate) validation: Option<Dataset>,
    /// How.
    pub(crate) parameters: Parameters,
    /// What it is to run on.
    pub(crate) gpu: GpuRequest,
    /// Where its files are to go, by name.
    pub(crate) uploads: BTreeMap<String, Redacted<Url>>,
    /// Who else is told of it.
    pub(crate) callback: Option<Redacted<Url>>,
    /// What the request says that has no effect.
    pub(crate) warnings: Vec<String>,
}

/// What the command line says in place of a request, or beside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// `job_id`.
    pub(crate) job_id: Option<String>,
    /// `dataset_url`.
    pub(crate) dataset: Option<String>,
    /// `validation_url`.
    pub(crate) validation: Option<String>,
    /// `base_model`.
    pub(crate) base_model: Option<String>,
    /// `hyperparameters`.
    pub(crate) parameters: ParameterFlags,
}

/// Reads a request, or says everything that is wrong with it. `fallback_id` names a job that has no name of its own.
pub(crate) fn parse(text: &str, overrides: &Overrides, fallback_id: &str) -> Result<JobSpec, Vec<Problem>> {
    let mut request: Value =
        serde_json::from_str(text).map_err(|error| vec![Problem::new("request", format!("is not JSON: {error}"))])?;
    overrides.put_into(&mut request);
    let mut findings = Findings::default();
    let job = read_request(&request, fallback_id, &mut findings);
    match job {
        Some(job) if findings.problems.is_empty() => Ok(JobSpec { warnings: findings.warnings, ..job }),
        _ => Err(findings.problems),
    }
}

fn read_request(request: &Value, fallback_id: &str, findings: &mut Findings) -> Option<JobSpec> {
    let mut envelope = Object::new("request", request, findings)?;
    let Some((_, input)) = envelope.take(&["input"], findings) else {
        findings
            .problem("input", "is missing; a request is {\"input\": {\"dataset_url\": …, \"hyperparameters\": {…}}}");
        return None;
    };
    let id = envelope.take(&["id"], findings);
    envelope.take_unused(&ENVELOPE);
    envelope.finish(findings);

    let mut input = Object::new("input", input, findings)?;
    let job_id = input.take(&["job_id"], findings).or(id);
    let dataset = input.take(&["dataset_url"], findings);
    let validation = input.take(&["validation_url", "validation_dataset_url"], findings);
    let shared = (input.take(&["base_model"], findings), input.take(&["preset"], findings));
    let none = Value::Object(Map::new());
    let hyperparameters = input.take(&["hyperparameters"], findings).map_or(&none, |(_, value)| value);
    let gpu = input.take(&["gpu_config"], findings);
    let uploads = uploads::read(input.take(&["upload_urls"], findings), findings);
    let callback = callback::read(input.take(&[callback::FIELD], findings), findings);
    input.finish(findings);

    let mut hyperparameters = Object::new("hyperparameters", hyperparameters, findings)?;
    let base_model = hyperparameters.take_or(&["base_model"], shared.0, findings);
    let preset = hyperparameters.take_or(&["preset"], shared.1, findings);
    let parameters = parameters::read(&mut hyperparameters, preset, findings);
    hyperparameters.finish(findings);
    if let Some(parameters) = &parameters {
        parameters::check(parameters, validation.is_some(), findings);
    }
    let gpu = gpu::read(gpu, findings);

    let job_id = match job_id {
        Some((path, value)) => check_job_id(&path, value, findings),
        None => Some(fallback_id.to_owned()),
    };
    let base_model = source::required(base_model, "hyperparameters.base_model", BaseModel::parse, findings);
    let dataset = source::required(dataset, "dataset_url", Dataset::parse, findings);
    let validation = match validation {
        Some(field) => Some(source::required(Some(field), "validation_url", Dataset::parse, findings)?),
        None => None,
    };
    Some(JobSpec {
        job_id: job_id?,
        base_model: base_model?,
        dataset: dataset?,
        validation,
        parameters: parameters?,
        gpu,
        uploads,
        callback,
        warnings: Vec::new(),
    })
}

// === impl Overrides ===

impl Overrides {
    /// Replaces what the request says. What has not the shape of a request is left as it is, for the parser to refuse.
    fn put_into(&self, request: &mut Value) {
        let Some(input) = request.get_mut("input").and_then(Value::as_object_mut) else { return };
        let mut put = |names: &[&str], value: &Option<String>| {
            if let Some(value) = value {
                names.iter().for_each(|name| drop(input.remove(*name)));
                input.insert(names[0].to_owned(), Value::from(value.as_str()));
            }
        };
        put(&["job_id"], &self.job_id);
        put(&["dataset_url"], &self.dataset);
        put(&["validation_url", "validation_dataset_url"], &self.validation);
        put(&["base_model"], &self.base_model);
        let given = input.entry("hyperparameters").or_insert_with(|| Value::Object(Map::new()));
        if given.is_null() {
            *given = Value::Object(Map::new());
        }
        if let Some(hyperparameters) = given.as_object_mut() {
            if self.base_model.is_some() {
                hyperparameters.remove("base_model");
            }
            self.parameters.put_into(hyperparameters);
        }
    }
}

/// A dataset as it is named on the command line.
pub(crate) fn dataset(text: &str) -> Result<Dataset, String> {
    Dataset::parse(text)
}

/// A job's name becomes a folder's, so it can neither leave its parent nor hide.
pub(crate) fn is_job_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_JOB_ID).contains(&text.len()) && !text.starts_with('.') && text.chars().all(allowed)
}

fn check_job_id(path: &str, value: &Value, findings: &mut Findings) -> Option<String> {
    let id = value.as_str().filter(|text| is_job_id(text));
    if id.is_none() {
        let message =
            format!("must be 1 to {MAX_JOB_ID} letters, digits, '.', '_' or '-', and must not begin with '.'");
        findings.problem(path, message);
    }
    id.map(str::to_owned)
}

#[cfg(test)]
mod tests;
