//! The exact form of a worker's requests: what the official SDK sends, and nothing else.

use serde_json::{Map, Value};

use super::{
    KEY, Route, Seen,
    route::{decoded, parameters},
};

/// Keys of an error that is a JSON text, in their order; `logs` is sent by some versions.
const ERROR_KEYS: [&str; 7] =
    ["error_type", "error_message", "error_traceback", "hostname", "worker_id", "runpod_version", "logs"];
/// Longest reason of a worker that is not healthy.
const MAX_REASON_CHARS: usize = 256;

/// Every deviation of a request from what the official SDK sends. Case of header names, spaces in JSON, and the leaked
/// `X-Request-ID` of takes make none.
pub fn wire_problems(seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    if seen.route == Route::Unknown {
        found.push("the platform knows no such address".to_owned());
    } else {
        line(seen, &mut found);
        query(seen, &mut found);
        headers(seen, &mut found);
        body(seen, &mut found);
    }
    let request = format!("request {} ({} {})", seen.number, seen.method, seen.target);
    found.into_iter().map(|problem| format!("{request}: {problem}")).collect()
}

fn line(seen: &Seen, found: &mut Vec<String>) {
    if seen.method != seen.route.method() {
        found.push(format!("the method should be {}", seen.route.method()));
    }
    let target = &seen.target;
    if target.find('&').is_some_and(|and| target.find('?').is_none_or(|question| and < question)) {
        found.push("the query should begin with ?".to_owned());
    }
    if target.matches('?').count() > 1 {
        found.push("a second ?".to_owned());
    }
    if target.contains("$ID") || target.contains("$RUNPOD_POD_ID") {
        found.push("a placeholder was not replaced".to_owned());
    }
    if seen.worker.is_empty() || seen.job.as_ref().is_some_and(String::is_empty) {
        found.push("an id is empty".to_owned());
    }
}

fn query(seen: &Seen, found: &mut Vec<String>) {
    let mut given = parameters(seen);
    // What the address had already comes first.
    if given.first().is_some_and(|(name, _)| *name == "gpu") {
        given.remove(0);
    }
    let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
    let expected: &[&[&str]] = match seen.route {
        Route::Take => &[&["job_in_progress"]],
        Route::TakeBatch => &[&["batch_size", "job_in_progress"]],
        Route::Progress | Route::Done | Route::Stream => &[&["isStream"]],
        Route::Stop | Route::Unknown => &[&[]],
        Route::Ping => {
            &[&["runpod_version"], &["job_id", "runpod_version"], &["status", "check", "reason", "runpod_version"]]
        }
    };
    if !expected.contains(&&names[..]) {
        found.push(format!("the parameters {names:?} should be one of {expected:?}"));
    }
    for (name, value) in given {
        if let Some(problem) = parameter(seen.route, name, value) {
            found.push(format!("{name}={value}: {problem}"));
        }
    }
}

fn parameter(route: Route, name: &str, value: &str) -> Option<&'static str> {
    match name {
        "job_in_progress" if !["0", "1"].contains(&value) => Some("neither 0 nor 1"),
        "batch_size" if value.parse::<u32>().is_ok_and(|size| size > 1) => None,
        "batch_size" => Some("a batch has more than one job"),
        "isStream" if route == Route::Done && value == "true" => None,
        "isStream" if value != "false" => Some("only the result of a stream says true"),
        "job_id" if value.contains(',') => Some("commas are sent as %2C"),
        "job_id" => {
            let text = decoded(value);
            let mut ids: Vec<&str> = text.split(',').collect();
            ids.sort_unstable();
            let doubled = ids.windows(2).any(|pair| pair[0] == pair[1]);
            (doubled || ids.contains(&"")).then_some("an id is empty or there twice")
        }
        "status" if value != "unhealthy" => Some("only unhealthy is said"),
        "reason" if decoded(value).chars().count() > MAX_REASON_CHARS => Some("too long"),
        "check" | "reason" | "runpod_version" if value.is_empty() => Some("empty"),
        _ => None,
    }
}

fn headers(seen: &Seen, found: &mut Vec<String>) {
    for name in ["host", "authorization", "content-type", "charset", "content-length", "x-request-id", "user-agent"] {
        if seen.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).count() > 1 {
            found.push(format!("the header {name} is there twice"));
        }
    }
    let mut expect = |name: &str, value: Option<&str>| {
        if seen.header(name) != value {
            found.push(format!("the header {name} is {:?} and should be {value:?}", seen.header(name)));
        }
    };
    expect("authorization", Some(KEY));
    expect("accept", Some("*/*"));
    expect("transfer-encoding", None);
    let posts = seen.route.method() == "POST";
    let content_type = match seen.route {
        Route::Ping => None,
        _ if posts => Some("application/x-www-form-urlencoded"),
        _ => Some("application/json"),
    };
    expect("content-type", content_type);
    expect("charset", posts.then_some("utf-8"));
    if posts {
        expect("x-request-id", seen.job.as_deref());
        expect("content-length", Some(&seen.body.len().to_string()));
    }
    for name in ["host", "user-agent"] {
        if seen.header(name).is_none_or(str::is_empty) {
            found.push(format!("there is no header {name}"));
        }
    }
}

fn body(seen: &Seen, found: &mut Vec<String>) {
    if seen.route.method() == "GET" {
        if !seen.body.is_empty() {
            found.push("a question has a body".to_owned());
        }
        return;
    }
    let object = match serde_json::from_slice::<Map<String, Value>>(&seen.body) {
        Ok(object) => object,
        Err(error) => return found.push(format!("the body is no JSON object: {error}")),
    };
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    let orders: &[&[&str]] = match seen.route {
        Route::Progress => &[&["status", "output"]],
        Route::Stream => &[&["output"]],
        _ => &[
            &[],
            &["output"],
            &["error"],
            &["output", "error"],
            &["stopPod"],
            &["output", "stopPod"],
            &["error", "stopPod"],
            &["output", "error", "stopPod"],
        ],
    };
    if !orders.contains(&&keys[..]) {
        found.push(format!("the keys {keys:?} should be one of {orders:?}"));
    }
    if object.get("stopPod").is_some_and(|stop| stop != true) {
        found.push("stopPod is true or absent".to_owned());
    }
    if let Some(error) = object.get("error") {
        found.extend(error_problem(error));
    }
}

fn error_problem(error: &Value) -> Option<String> {
    let Some(text) = error.as_str() else { return Some("error should be a string".to_owned()) };
    if text.is_empty() {
        return Some("error is empty".to_owned());
    }
    // A plain text is allowed; only what looks like the SDK's own has its form.
    let inner = serde_json::from_str::<Map<String, Value>>(text).ok()?;
    if !inner.contains_key("error_type") {
        return None;
    }
    let keys: Vec<&str> = inner.keys().map(String::as_str).collect();
    let is_form = keys == ERROR_KEYS || keys == ERROR_KEYS[..ERROR_KEYS.len() - 1];
    let all_texts = inner.values().all(Value::is_string);
    (!is_form || !all_texts)
        .then(|| format!("the error has the keys {keys:?} and should have {ERROR_KEYS:?}, all texts"))
}
