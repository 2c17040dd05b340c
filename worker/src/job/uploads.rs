//! Links of a job by which its files are to be delivered.

use std::collections::BTreeMap;

use url::Url;

use super::fields::{Field, Findings, shown};
use crate::{redacted::Redacted, storage::upload};

/// Most links of a job.
const MOST: usize = 100;
/// Longest name of a file.
const LONGEST_NAME: usize = 200;

/// `upload_urls`: names of files, and the link that each is sent to.
pub(super) fn read(field: Option<Field<'_>>, findings: &mut Findings) -> BTreeMap<String, Redacted<Url>> {
    let mut uploads = BTreeMap::new();
    let Some((path, value)) = field else { return uploads };
    let Some(links) = value.as_object().filter(|links| links.len() <= MOST) else {
        findings.problem(path, format!("must be an object of at most {MOST} names of files with a link each"));
        return uploads;
    };
    for (name, link) in links {
        let shown_name: String = name.chars().take(LONGEST_NAME).collect();
        let path = format!("{path}.{shown_name}");
        let long = (name.len() > LONGEST_NAME).then_some("it is too long");
        if let Some(why) = long.or_else(|| upload::name_problem(name)) {
            findings.problem(path, format!("is no name of a file: {why}"));
            continue;
        }
        // Of a link nothing is repeated.
        let Some(text) = link.as_str() else {
            let what = if link.is_object() || link.is_array() { "no text".to_owned() } else { shown(link) };
            findings.problem(path, format!("must be a link, not {what}"));
            continue;
        };
        match upload::upload_link(text) {
            Ok(link) => drop(uploads.insert(name.clone(), link)),
            Err(error) => findings.problem(path, error.to_string()),
        }
    }
    uploads
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_value(value: &Value) -> (BTreeMap<String, Redacted<Url>>, Vec<String>) {
        let mut findings = Findings::default();
        let uploads = read(Some(("upload_urls".into(), value)), &mut findings);
        (uploads, findings.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn links_are_kept_by_name_and_not_shown() {
        let (uploads, problems) = read_value(&json!({ "adapter_model.safetensors": "https://h/a?token=S3CR3T" }));
        assert_eq!(problems, [""; 0]);
        assert_eq!(uploads["adapter_model.safetensors"].expose().query(), Some("token=S3CR3T"));
        assert!(!format!("{uploads:?}").contains("S3CR3T"));
    }

    #[test]
    fn every_mistake_is_named_without_its_link() {
        let wrong = json!({ "a b": "https://h/x", "c": 7, "d": "ftp://h/S3CR3T", "e": ["https://h/S3CR3T"] });
        let (uploads, problems) = read_value(&wrong);
        assert_eq!((uploads.len(), problems.len()), (0, 4), "{problems:?}");
        assert!(problems.iter().all(|problem| problem.starts_with("upload_urls.") && !problem.contains("S3CR3T")));
        assert_eq!(read_value(&json!("https://h/S3CR3T")).1.len(), 1);
    }
}
