//! A Supabase project as far as a worker speaks to it: the rows of one table as PostgREST keeps them, and a bucket as its
//! storage does.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use brightrun_worker::{
    storage::SourcePolicy,
    telling::{Telling, TellingLimits},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, time::sleep};

use crate::{PATIENCE, telling};

/// The project's key.
pub(crate) const KEY: &str = "S3CR3Tservicekey0123456789";
/// Names of columns, and whether only whole numbers fit in.
const COLUMNS: [(&str, bool); 9] = [
    ("status", false),
    ("progress", true),
    ("current_epoch", true),
    ("current_step", true),
    ("current_loss", false),
    ("tokens_per_second", false),
    ("final_loss", false),
    ("adapter_file_path", false),
    ("error_message", false),
];
const TABLE: &str = "/rest/v1/pipeline_training_jobs";
const OBJECTS: &str = "/storage/v1/object/";

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It is answered with a status and this text, and nothing else happens.
    Says(u16, &'static str),
    /// What is stored is not what was sent.
    Changes,
    /// It is never answered.
    Hangs,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) body: Bytes,
}

/// The project.
pub(crate) struct Project {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<String, Map<String, Value>>,
    writes: Vec<Map<String, Value>>,
    buckets: Vec<String>,
    objects: BTreeMap<String, Bytes>,
    most_bytes: Option<usize>,
    tags: bool,
    asked: Vec<Asked>,
    faults: VecDeque<(Method, Fault)>,
}

type Answer = Response<Full<Bytes>>;

// === impl Project ===

impl Project {
    /// With one row, and the bucket for adapters.
    pub(crate) async fn start(row: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let state = State { buckets: vec!["lora-models".into()], ..State::default() };
        let project = Self { address: listener.local_addr().unwrap(), state: Arc::new(Mutex::new(state)) };
        project.state().rows.insert(row.to_owned(), Map::new());
        let state = project.state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, state.clone()));
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        project
    }

    /// The operator's settings.
    /// Tells this project.
    pub(crate) fn telling(&self, policy: &SourcePolicy, limits: TellingLimits) -> Telling {
        let variables = self.variables();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        telling(policy, limits, &variables)
    }

    pub(crate) fn variables(&self) -> [(String, String); 2] {
        [("SUPABASE_URL".into(), format!("http://{}", self.address)), ("SUPABASE_SERVICE_ROLE_KEY".into(), KEY.into())]
    }

    /// The next requests by this method go wrong, one after another.
    pub(crate) fn faults(&self, method: Method, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults.into_iter().map(|fault| (method.clone(), fault)));
    }

    pub(crate) fn without_bucket(&self) {
        self.state().buckets.clear();
    }

    pub(crate) fn takes_at_most(&self, bytes: usize) {
        self.state().most_bytes = Some(bytes);
    }

    /// It says MD5 sums of what it has.
    pub(crate) fn with_tags(&self) {
        self.state().tags = true;
    }

    pub(crate) fn row(&self, id: &str) -> Value {
        Value::Object(self.state().rows[id].clone())
    }

    /// Every write of a row that was done, in order.
    pub(crate) fn writes(&self) -> Vec<Value> {
        self.state().writes.iter().cloned().map(Value::Object).collect()
    }

    pub(crate) fn object(&self, path: &str) -> Option<Bytes> {
        self.state().objects.get(path).cloned()
    }

    pub(crate) fn asked(&self, method: &Method) -> Vec<Asked> {
        self.state().asked.iter().filter(|asked| asked.method == method).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(refusal(400, json!({}))) };
    let body = body.to_bytes();
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        let target = head.uri.to_string();
        state.asked.push(Asked { method: head.method.clone(), target, body: body.clone() });
        let next = state.faults.iter().position(|(method, _)| *method == head.method);
        next.and_then(|next| state.faults.remove(next)).map(|(_, fault)| fault)
    };
    let mut changed = false;
    match fault {
        Some(Fault::Says(status, text)) => return Ok(plain(status, text.into())),
        Some(Fault::Hangs) => sleep(PATIENCE * 60).await,
        Some(Fault::Changes) => changed = true,
        None => {}
    }
    let mut state = state.lock().unwrap();
    let path = head.uri.path();
    let known = header("apikey") == KEY && header("authorization") == format!("Bearer {KEY}");
    if path == TABLE && head.method == Method::PATCH {
        if !known {
            return Ok(refusal(401, json!({ "code": "PGRST301", "message": "JWSError JWSInvalidSignature" })));
        }
        assert_eq!(header("content-type"), "application/json");
        return Ok(state.write(head.uri.query().unwrap_or_default(), &body, &header("prefer")));
    }
    let Some(object) = path.strip_prefix(OBJECTS) else { return Ok(plain(404, Bytes::new())) };
    if !known {
        return Ok(store_refusal("403", "Unauthorized", "Invalid Compact JWS"));
    }
    Ok(match head.method {
        Method::POST => state.put(object, &body, header("x-upsert") == "true", changed),
        Method::GET => state.get(object),
        _ => plain(405, Bytes::new()),
    })
}

// === impl State ===

impl State {
    fn write(&mut self, query: &str, body: &[u8], prefer: &str) -> Answer {
        let Ok(Value::Object(columns)) = serde_json::from_slice(body) else {
            return refusal(400, json!({ "code": "PGRST102", "message": "Empty or invalid json" }));
        };
        for (name, value) in &columns {
            let Some((_, whole)) = COLUMNS.iter().find(|(known, _)| known == name) else {
                return refusal(
                    400,
                    json!({ "code": "PGRST204", "message": format!("Could not find the '{name}' column") }),
                );
            };
            if *whole && !value.is_i64() && !value.is_u64() && !value.is_null() {
                return refusal(400, json!({ "code": "22P02", "message": "invalid input syntax for type integer" }));
            }
        }
        let fields: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        assert_eq!(fields.get("select").map(String::as_str), Some("id"));
        let id = fields["id"].strip_prefix("eq.").unwrap().to_owned();
        assert_eq!(prefer, "return=representation");
        let Some(row) = self.rows.get_mut(&id) else { return refusal(200, json!([])) };
        row.extend(columns.clone());
        self.writes.push(columns);
        refusal(200, json!([{ "id": id }]))
    }

    fn put(&mut self, object: &str, body: &Bytes, upsert: bool, changed: bool) -> Answer {
        let bucket = object.split('/').next().unwrap();
        if !self.buckets.iter().any(|known| known == bucket) {
            return store_refusal("404", "Bucket not found", "Bucket not found");
        }
        if self.most_bytes.is_some_and(|most| body.len() > most) {
            return store_refusal("413", "Payload too large", "The object exceeded the maximum allowed size");
        }
        if self.objects.contains_key(object) && !upsert {
            return store_refusal("409", "Duplicate", "The resource already exists");
        }
        let mut stored = body.to_vec();
        if changed {
            stored[7] ^= 1;
        }
        self.objects.insert(object.to_owned(), stored.into());
        refusal(200, json!({ "Id": "0", "Key": object }))
    }

    fn get(&self, object: &str) -> Answer {
        let Some(content) = self.objects.get(object) else {
            return store_refusal("404", "not_found", "Object not found");
        };
        let mut answer = plain(200, content.clone());
        // Of what came in parts it says no sum.
        let tag = if self.tags { md5_of(content) } else { "0123456789abcdef0123456789abcdef-2".to_owned() };
        answer.headers_mut().insert("etag", format!("\"{tag}\"").parse().unwrap());
        answer
    }
}

fn md5_of(content: &[u8]) -> String {
    use md5::Digest;
    hex::encode(md5::Md5::digest(content))
}

fn plain(status: u16, body: Bytes) -> Answer {
    Response::builder().status(status).body(Full::new(body)).unwrap()
}

fn refusal(status: u16, body: Value) -> Answer {
    plain(status, body.to_string().into())
}

/// Every error of the storage is HTTP 400, and says more in its body.
fn store_refusal(status: &str, error: &str, message: &str) -> Answer {
    refusal(400, json!({ "statusCode": status, "error": error, "message": message }))
}
