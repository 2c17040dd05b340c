//! Names of delivered files, and what kind of file a name says.

use super::error::UploadError;

/// Longest name of a file, and of a job.
pub const MAX_NAME_BYTES: usize = 512;

/// Checks the name of a file: parts of ASCII letters, digits, `.`, `_` and `-`, with `/` between them.
pub(super) fn check(name: &str) -> Result<(), UploadError> {
    match problem(name) {
        Some(why) => Err(UploadError::Name { name: shown(name), why }),
        None => Ok(()),
    }
}

/// What is wrong with the name of a file, if anything is.
pub(crate) fn problem(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Some("a name has 1 to 512 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte)) {
        return Some("a name is ASCII letters, digits, '.', '_', '-' and '/'");
    }
    name.split('/').any(|part| matches!(part, "" | "." | "..")).then_some("no part of a name is empty, '.' or '..'")
}

/// Checks the name of a job, which becomes one part of a key.
pub(super) fn check_job(job_id: &str) -> Result<(), UploadError> {
    check(job_id)?;
    match job_id.contains('/') {
        true => Err(UploadError::Name { name: shown(job_id), why: "the name of a job has no '/'" }),
        false => Ok(()),
    }
}

/// A name that may be anything, as part of a message.
pub(super) fn shown(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    crate::redacted::shown_path(&name.chars().take(MAX_NAME_BYTES).map(plain).collect::<String>())
}

/// What a store tells those who fetch the file.
pub(super) fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase()).as_deref() {
        Some("json") => "application/json",
        Some("jsonl") => "application/x-ndjson",
        Some("md") => "text/markdown; charset=utf-8",
        Some("txt" | "jinja" | "log") => "text/plain; charset=utf-8",
        Some("html") => "text/html; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("gz" | "tgz") => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["adapter_model.safetensors", "a/b-c/D.1", ".gitattributes", "a..b"] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", "/a", "a/", "a//b", "../a", "a/./b", "a b", "ä", "a\n", "a?b", &"a".repeat(513)] {
            assert!(check(name).is_err(), "{name}");
        }
        assert!(check_job("job-1").is_ok() && check_job("a/b").is_err() && check_job("..").is_err());
    }

    #[test]
    fn kinds_are_known_by_the_ending() {
        assert_eq!(content_type("a/metrics.jsonl"), "application/x-ndjson");
        assert_eq!(content_type("x.JSON"), "application/json");
        assert_eq!(content_type("adapter_model.safetensors"), "application/octet-stream");
        assert_eq!(content_type("LICENSE"), "application/octet-stream");
    }
}
