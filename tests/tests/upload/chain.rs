//! Keys from AWS's usual places. The SDK reads them out of the process's environment, so each delivery here is made by an
//! ignored test of this program in a process of its own.

use std::{
    env, fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::{
    net::Names,
    storage::{
        FetchLimits, S3Settings, Source, fetch,
        upload::{Store, look},
    },
};
use hyper::{Request, body::Incoming};
use s3s::dto::{Timestamp, TimestampFormat};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::{
    Bench,
    store::{self, get},
};

/// What the process is told besides AWS's variables: pauses between deliveries in milliseconds, and an `s3://` address.
const PAUSES: &str = "BRIGHTRUN_TEST_PAUSES";
const DATASET: &str = "BRIGHTRUN_TEST_DATASET";
/// In every answer and file that must not be repeated.
const SECRET: &str = "S3CR3T";

/// A store, a server that lends keys, and what the store was asked.
struct Stage {
    folder: TempDir,
    lender: FaultServer,
    asked: Arc<Mutex<Vec<String>>>,
    variables: Vec<(&'static str, String)>,
}

impl Stage {
    /// With a bucket, and without a key or a place that has one.
    async fn new() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let answer = move |request: Request<Incoming>, service| {
            let head = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            seen.lock().unwrap().push(format!("{} {}", head("authorization"), head("x-amz-security-token")));
            store::answer(request.map(s3s::Body::from), service)
        };
        let (folder, address) = store::start(answer).await;
        let lender = FaultServer::start().await.unwrap();
        let variables = vec![
            ("BUCKET_NAME", "bucket".to_owned()),
            ("S3_ENDPOINT", format!("http://{address}")),
            // Nobody asks the machine that the test runs on.
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", lender.url("")),
            ("HOME", folder.path().display().to_string()),
        ];
        Self { folder, lender, asked, variables }
    }

    fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.into()));
        self
    }

    /// Sets a variable to a file with this content.
    fn file(self, name: &'static str, content: &str) -> Self {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        self.set(name, path.display().to_string())
    }

    /// Lends keys as a container's service.
    fn container(self, replies: impl IntoIterator<Item = Reply>) -> Self {
        self.lender.on("/creds", replies);
        let address = self.lender.url("/creds");
        self.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
    }

    /// What the process says, a line for each thing.
    async fn says(&self) -> Vec<String> {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["chain::in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"]);
        let theirs = ["AWS_", "BUCKET_", "S3_"];
        for (name, _) in env::vars().filter(|(name, _)| theirs.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains(SECRET), "{text}");
        text.lines().filter_map(|line| Some(line.split_once("chain: ")?.1.to_owned())).collect()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn lent(id: &str, secret: &str, life: Duration) -> Reply {
    let mut end = Vec::new();
    Timestamp::from(SystemTime::now() + life).format(TimestampFormat::DateTime, &mut end).unwrap();
    let end = String::from_utf8(end).unwrap();
    Reply::file(format!(
        r#"{{"Code":"Success","AccessKeyId":"{id}","SecretAccessKey":"{secret}","Token":"lent-token","Expiration":"{end}"}}"#
    ))
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
#[ignore = "the other tests run it, with variables of their own"]
async fn in_a_process_of_its_own() {
    let variable = |name: &str| env::var(name).ok();
    let store = match Store::from_variables(variable) {
        Ok(store) => store,
        Err(error) => return println!("chain: settings: {error}"),
    };
    let mut bench = Bench::new(store).file("a", b"content").file("b", b"more");
    if variable("S3_ENDPOINT").is_none() {
        bench.policy.network.names = Names::with(|host| {
            println!("chain: {host}");
            Err(std::io::ErrorKind::NotFound.into())
        });
    }
    let begun = Instant::now();
    if let Err(error) = look(&bench.store, &bench.policy.network, &bench.limits).await {
        println!("chain: {} ms", begun.elapsed().as_millis());
        return println!("chain: {error} {error:?}");
    }
    println!("chain: {:?} {:?}", bench.store.warning(), bench.store);
    let pauses = variable(PAUSES).unwrap_or_default();
    for pause in std::iter::once(0).chain(pauses.split_whitespace().map(|text| text.parse().unwrap())) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match bench.deliver().await {
            Ok(delivered) => println!("chain: {} {:?}", delivered.addresses()["a"], delivered.warnings),
            Err(error) => println!("chain: {error} {error:?}"),
        }
    }
    if let Some(dataset) = variable(DATASET) {
        let (source, target) = (Source::parse(&dataset).unwrap(), bench.folder.path().join("dataset"));
        bench.policy.s3 = Some(S3Settings::from_environment().unwrap());
        let limits = FetchLimits { attempts: 1, ..FetchLimits::default() };
        match fetch(&source, &target, &bench.policy, &limits, &|_| {}, &bench.cancel).await {
            Ok(fetched) => println!("chain: {} bytes", fetched.bytes),
            Err(error) => println!("chain: {error} {error:?}"),
        }
    }
}

/// The link of a delivery that went well opens.
async fn opens(line: &str) {
    let link = line.split(' ').next().unwrap();
    assert!(link.starts_with("http"), "{line}");
    assert_eq!(get(link).await.2, b"content", "{line}");
}

fn write(folder: &Path, name: &str, content: &[u8]) {
    fs::write(folder.join("bucket").join(name), content).unwrap();
}

#[tokio::test]
async fn a_profile_opens_the_store_of_results_and_of_datasets() {
    let keys = "[default]\naws_access_key_id = other\naws_secret_access_key = other\n\
                [results]\naws_access_key_id = key-id\naws_secret_access_key = key-secret\n";
    let stage = Stage::new().await.file("AWS_SHARED_CREDENTIALS_FILE", keys).set("AWS_PROFILE", "results");
    let stage = stage.file("AWS_CONFIG_FILE", "[profile results]\nregion = eu-central-1\n");
    write(stage.folder.path(), "d", &[7; 1000]);
    let stage = stage.set(DATASET, "s3://bucket/d");
    let said = stage.says().await;
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].starts_with("None"), "{}", said[0]);
    opens(&said[1]).await;
    assert!(said[1].ends_with(" []"), "{}", said[1]);
    assert_eq!(said[2], "1000 bytes");
    let theirs = |asked: &&String| asked.contains("=key-id/") && asked.contains("/eu-central-1/s3/");
    let (asked, signed) = (stage.asked(), stage.asked().iter().filter(theirs).count());
    // Links are opened without a signature in the header.
    assert!(signed > 5 && asked.iter().all(|asked| asked.trim().is_empty() || theirs(&asked)), "{asked:?}");
    assert_eq!(stage.lender.seen().len(), 0);
}

#[tokio::test]
async fn a_container_lends_a_key_and_links_end_with_it() {
    let stage = Stage::new().await.container([lent("key-id", "key-secret", HOUR)]);
    let stage = stage.set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "may-ask");
    let said = stage.says().await;
    assert!(said[0].contains("was lent to this machine until"), "{}", said[0]);
    opens(&said[1]).await;
    assert!(said[1].contains(" GMT: links to results end then"), "{}", said[1]);
    // All clients of all deliveries share what was found.
    assert_eq!(stage.lender.count("/creds"), 1);
    assert_eq!(stage.lender.seen()[0].header("authorization"), Some("may-ask"));
    assert!(stage.asked()[0].ends_with(" lent-token"), "{:?}", stage.asked());
}

const TOKEN: &str = "/latest/api/token";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// Plays a machine with a role.
fn machine(stage: &Stage) {
    let token = Reply::file("machine-token").header("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    stage.lender.on(TOKEN, [token]);
    stage.lender.on(ROLES, [Reply::file("trainer")]);
    stage.lender.on(&format!("{ROLES}trainer"), [lent("key-id", "key-secret", HOUR)]);
    stage.lender.on("/latest/meta-data/placement/region", [Reply::file("eu-west-3")]);
}

#[tokio::test]
async fn a_machine_lends_the_key_of_its_role() {
    let stage = Stage::new().await;
    machine(&stage);
    let said = stage.says().await;
    opens(&said[1]).await;
    assert_eq!(stage.lender.count(&format!("{ROLES}trainer")), 1);
    // The machine's region says nothing about a store elsewhere.
    assert!(stage.asked()[0].contains("/us-east-1/s3/"), "{:?}", stage.asked());
}

#[tokio::test]
async fn amazons_region_is_the_machines_where_none_is_set() {
    let mut stage = Stage::new().await;
    machine(&stage);
    stage.variables.retain(|(name, _)| *name != "S3_ENDPOINT");
    assert_eq!(stage.says().await[0], "bucket.s3.eu-west-3.amazonaws.com");
    let stage = stage.file("AWS_CONFIG_FILE", "[default]\nregion = eu-north-1\n");
    assert_eq!(stage.says().await[0], "bucket.s3.eu-north-1.amazonaws.com");
    let stage = stage.set("BUCKET_REGION", "eu-south-1");
    assert_eq!(stage.says().await[0], "bucket.s3.eu-south-1.amazonaws.com");

    let mut nowhere = Stage::new().await.container([lent("key-id", "key-secret", HOUR)]);
    nowhere.variables.retain(|(name, _)| *name != "S3_ENDPOINT");
    nowhere.lender.on(TOKEN, [Reply::status(403)]);
    let said = nowhere.says().await;
    assert!(said[1].starts_with("s3://bucket: S3_REGION is not set"), "{said:?}");
}

#[tokio::test]
async fn a_web_identity_becomes_a_key() {
    let stage = Stage::new().await.file("AWS_WEB_IDENTITY_TOKEN_FILE", "token-of-the-pod");
    let stage = stage.set("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer");
    let address = stage.lender.url("");
    let stage = stage.set("AWS_ENDPOINT_URL_STS", address);
    let answer = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                  <AccessKeyId>key-id</AccessKeyId><SecretAccessKey>key-secret</SecretAccessKey>\
                  <SessionToken>lent-token</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration></Credentials>\
                  </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
    let busy = Reply::refusal(503, "<ErrorResponse><Error><Code>ServiceUnavailable</Code></Error></ErrorResponse>");
    stage.lender.on("/", [busy, Reply::file(answer)]);
    let said = stage.says().await;
    opens(&said[1]).await;
    let sent = String::from_utf8(stage.lender.seen()[0].body.clone()).unwrap();
    assert!(sent.contains("WebIdentityToken=token-of-the-pod"), "{sent}");

    let denied =
        format!("<ErrorResponse><Error><Code>AccessDenied</Code><Message>{SECRET}</Message></Error></ErrorResponse>");
    stage.lender.on("/", [Reply::refusal(403, &denied)]);
    let said = stage.says().await;
    let error = "s3://bucket: the web identity gives no key for the store: it answered HTTP 403 (AccessDenied); check ";
    assert!(said[1].starts_with(error), "{said:?}");
}

#[tokio::test]
async fn a_key_that_ends_is_asked_for_again() {
    let refused = Reply::refusal(403, &format!(r#"{{"code":"{SECRET}","message":"{SECRET}"}}"#));
    let first = lent("key-id", "key-secret", Duration::from_secs(6));
    let stage = Stage::new().await.container([first, refused.clone(), lent("key-id-2", "key-secret-2", HOUR)]);
    let said = stage.set(PAUSES, "3200 3200");
    let (stage, said) = (&said, said.says().await);
    assert_eq!(said.len(), 4, "{said:?}");
    // The second is made while there is no new key and the old one is still good.
    for (line, id) in said[1..].iter().zip(["key-id", "key-id", "key-id-2"]) {
        assert!(line.contains(&format!("X-Amz-Credential={id}%2F")), "{line}");
    }
    opens(&said[3]).await;
    assert_eq!(stage.lender.count("/creds"), 3);

    let stage = Stage::new().await.container([refused]);
    let said = stage.says().await;
    assert!(said[1].contains("credentials service gives no key for the store: it answered HTTP 403; "), "{said:?}");
}

/// A network that swallows what goes to the metadata service is what most containers have.
#[tokio::test]
async fn a_machine_without_any_key_is_told_so_soon() {
    let stage = Stage::new().await.set("AWS_PROFILE", "none");
    stage.lender.on(TOKEN, [Reply::status(200).delayed(Duration::from_secs(60))]);
    let said = stage.says().await;
    let took: u64 = said[0].strip_suffix(" ms").unwrap().parse().unwrap();
    assert!(took < 5000, "{took} ms");
    assert_eq!(stage.lender.seen().len(), 1);
    for part in ["s3://bucket: there is no key", "set BUCKET_ACCESS_KEY_ID and", "AWS_PROFILE is set, but", "NotSetUp"]
    {
        assert!(said[1].contains(part), "{part}: {}", said[1]);
    }
    assert_eq!(stage.asked(), [""; 0]);

    let stage = stage.set("AWS_EC2_METADATA_DISABLED", "true");
    assert!(stage.says().await[1].contains("there is no key"));
    assert_eq!(stage.lender.seen().len(), 1);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_and_not_repeated() {
    let broken = format!("[default]\naws_access_key_id = x\naws_secret_access_key {SECRET}\n");
    let said = Stage::new().await.file("AWS_SHARED_CREDENTIALS_FILE", &broken).says().await;
    assert!(said[1].contains("the profile gives no key for the store: invalid profile"), "{said:?}");
    let session =
        format!("[default]\nsso_start_url = https://{SECRET}\nsso_region = r\nsso_account_id = 1\nsso_role_name = x\n");
    let said = Stage::new().await.file("AWS_CONFIG_FILE", &session).says().await;
    assert!(said[1].contains("single sign-on, a login or a process, which are not supported"), "{said:?}");
    let process = format!("[default]\ncredential_process = {SECRET}\n");
    let said = Stage::new().await.file("AWS_CONFIG_FILE", &process).says().await;
    assert!(said[1].contains("gives no key for the store"), "{said:?}");
    let said = Stage::new().await.set("AWS_ROLE_ARN", "r").set("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere").says().await;
    assert!(said[1].contains("the web identity gives no key for the store; check AWS_WEB_IDENTITY"), "{said:?}");
}
