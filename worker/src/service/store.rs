//! Queue and history on disk.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::Value;
use thiserror::Error;

use super::{
    record::{Facts, Policy, Status},
    secrets,
    submission::Submission,
};

/// The file, and that which keeps other processes away from it.
const FILE: &str = "queue.sqlite";
const LOCK: &str = "queue.lock";
/// What the tables look like.
const VERSION: i64 = 1;
/// Nobody else has the file; a backup may, for a moment.
const BUSY: Duration = Duration::from_secs(5);

const TABLE: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    place INTEGER NOT NULL,
    status TEXT NOT NULL,
    submitted INTEGER NOT NULL,
    queued INTEGER NOT NULL,
    started INTEGER,
    ended INTEGER,
    retries INTEGER NOT NULL DEFAULT 0,
    broken INTEGER NOT NULL DEFAULT 0,
    execution INTEGER,
    ttl INTEGER,
    input TEXT NOT NULL,
    -- Its input has lost links or keys that it cannot be done without.
    forgotten INTEGER NOT NULL DEFAULT 0,
    s3_config TEXT,
    webhook TEXT,
    -- The webhook is to be told of its end.
    to_tell INTEGER NOT NULL DEFAULT 0,
    output TEXT,
    error TEXT
) STRICT, WITHOUT ROWID;
";

/// Why the disk does not do as it should.
#[derive(Debug, Error)]
pub(super) enum StoreError {
    #[error("{0}: another brightrun serve is at work there; give this one another folder with --data")]
    Taken(String),
    #[error("{0}: {1}; see that the folder is there, is yours and has room")]
    Folder(String, io::Error),
    #[error("{0} was written by a newer brightrun; use that one, or give this one another folder with --data")]
    Newer(String),
    #[error("the queue's file: {0}; see that its disk has room and works")]
    Database(#[from] rusqlite::Error),
}

/// What a job is to be carried out with.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) input: Value,
    pub(super) store: Option<Value>,
}

/// What a client hears of a job that is over.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Answered {
    pub(super) output: Option<Value>,
    pub(super) error: Option<String>,
}

/// What a webhook is told with.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) webhook: String,
    pub(super) input: Value,
}

/// Queue and history on disk. Every method is whole and durable when it returns.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    _lock: File,
}

// === impl Store ===

impl Store {
    /// Opens or makes it. The folder is for its owner's eyes: inputs hold signed links.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let shown = |path: &Path| path.display().to_string();
        let failed = |path: &Path| {
            let path = shown(path);
            move |error| StoreError::Folder(path, error)
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        let lock = own_file(&folder.join(LOCK)).map_err(failed(&folder.join(LOCK)))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Taken(shown(folder))),
            Err(TryLockError::Error(error)) => return Err(failed(folder)(error)),
        }
        let path: PathBuf = folder.join(FILE);
        // SQLite gives its other files the mode of this one.
        drop(own_file(&path).map_err(failed(&path))?);
        let connection = Connection::open(&path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        // What is deleted or replaced is overwritten.
        connection.pragma_update(None, "secure_delete", true)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > VERSION {
            return Err(StoreError::Newer(shown(&path)));
        }
        connection.execute_batch(TABLE)?;
        connection.pragma_update(None, "user_version", VERSION)?;
        Ok(Self { connection, _lock: lock })
    }

    /// Everything that is there, without what is large.
    pub(super) fn all(&self) -> Result<Vec<(String, Facts)>, StoreError> {
        let columns = "id, place, status, submitted, queued, started, ended, retries, broken, octet_length(input), execution, ttl";
        let mut statement = self.connection.prepare(&format!("SELECT {columns} FROM jobs ORDER BY place"))?;
        let rows = statement.query_map([], facts)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A new job.
    pub(super) fn add(&mut self, job: &Submission, input: &str, facts: &Facts) -> Result<(), StoreError> {
        let sql = "INSERT INTO jobs (id, place, status, submitted, queued, execution, ttl, input, s3_config, webhook)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        self.connection.prepare_cached(sql)?.execute(params![
            job.id,
            facts.place,
            facts.status.name(),
            facts.submitted,
            facts.queued,
            job.policy.execution,
            job.policy.ttl,
            input,
            job.store.as_ref().map(Value::to_string),
            job.webhook,
        ])?;
        Ok(())
    }

    /// What has become of a job that is not over.
    pub(super) fn move_on(&mut self, id: &str, facts: &Facts) -> Result<(), StoreError> {
        let sql = "UPDATE jobs SET place = ?2, status = ?3, queued = ?4, started = ?5, ended = ?6, retries = ?7,
                   broken = ?8, output = NULL, error = NULL, to_tell = 0 WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute(params![
            id,
            facts.place,
            facts.status.name(),
            facts.queued,
            facts.started,
            facts.ended,
            facts.retries,
            facts.broken,
        ])?;
        Ok(())
    }

    /// What a job is to be carried out with.
    pub(super) fn asked(&self, id: &str) -> Result<Option<Asked>, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT input, s3_config FROM jobs WHERE id = ?1")?;
        let row = statement.query_row([id], |row| {
            let store: Option<String> = row.get(1)?;
            Ok(Asked { input: json(row.get(0)?), store: store.map(json) })
        });
        Ok(row.optional()?)
    }

    /// The end of a job. Its secrets are forgotten, except that of a webhook which is to be told; whether there is one.
    pub(super) fn end(&mut self, id: &str, facts: &Facts, answer: &Answered) -> Result<bool, StoreError> {
        let transaction = self.connection.transaction()?;
        forget(&transaction, id)?;
        let sql = "UPDATE jobs SET status = ?2, started = ?3, ended = ?4, retries = ?5, broken = ?6, output = ?7,
                   error = ?8, s3_config = NULL, to_tell = webhook IS NOT NULL WHERE id = ?1 RETURNING to_tell";
        let parameters = params![
            id,
            facts.status.name(),
            facts.started,
            facts.ended,
            facts.retries,
            facts.broken,
            answer.output.as_ref().map(Value::to_string),
            answer.error,
        ];
        let to_tell: Option<bool> = transaction.query_row(sql, parameters, |row| row.get(0)).optional()?;
        transaction.commit()?;
        self.sweep();
        Ok(to_tell.unwrap_or_default())
    }

    /// What a client hears of a job that is over.
    pub(super) fn answered(&self, id: &str) -> Result<Answered, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT output, error FROM jobs WHERE id = ?1")?;
        let row = statement.query_row([id], |row| {
            let output: Option<String> = row.get(0)?;
            Ok(Answered { output: output.map(json), error: row.get(1)? })
        });
        Ok(row.optional()?.unwrap_or_default())
    }

    /// Whether a job that is over has lost what it could be done with again.
    pub(super) fn is_forgotten(&self, id: &str) -> Result<bool, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT forgotten FROM jobs WHERE id = ?1")?;
        Ok(statement.query_row([id], |row| row.get(0)).optional()?.unwrap_or_default())
    }

    /// Jobs whose webhooks are still to be told.
    pub(super) fn to_tell(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare("SELECT id FROM jobs WHERE to_tell ORDER BY ended")?;
        let ids = statement.query_map([], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    /// What a webhook is told with, where it is to be told.
    pub(super) fn told(&self, id: &str) -> Result<Option<Told>, StoreError> {
        let sql = "SELECT webhook, input FROM jobs WHERE id = ?1 AND to_tell AND webhook IS NOT NULL";
        let mut statement = self.connection.prepare_cached(sql)?;
        let row = statement.query_row([id], |row| Ok(Told { webhook: row.get(0)?, input: json(row.get(1)?) }));
        Ok(row.optional()?)
    }

    /// A webhook was told, or will not be.
    pub(super) fn webhook_is_done(&mut self, id: &str) -> Result<(), StoreError> {
        let Some(told) = self.told(id)? else { return Ok(()) };
        let secret = secrets::shown(&told.webhook).is_some();
        let webhook = (!secret).then_some(told.webhook);
        let sql = "UPDATE jobs SET to_tell = 0, webhook = ?2, forgotten = forgotten OR ?3 WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute(params![id, webhook, secret])?;
        self.sweep();
        Ok(())
    }

    /// Forgets jobs altogether.
    pub(super) fn delete(&mut self, ids: &[String]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for id in ids {
            transaction.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([id])?;
        }
        transaction.commit()?;
        self.sweep();
        Ok(())
    }

    /// From now on the file cannot grow, as on a full disk.
    #[cfg(test)]
    pub(super) fn fill_up(&self) {
        let pages: i64 = self.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        self.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    }

    /// What was overwritten goes from the log as well. Somebody who reads the file can prevent it; the next one does it then.
    fn sweep(&self) {
        if let Err(error) = self.connection.pragma_update(None, "wal_checkpoint", "truncate") {
            tracing::debug!("the queue's log stays: {error}");
        }
    }
}

/// Takes the secrets out of the input of a job.
fn forget(transaction: &Transaction<'_>, id: &str) -> Result<(), StoreError> {
    let sql = "SELECT input, s3_config IS NOT NULL FROM jobs WHERE id = ?1";
    let row = transaction.query_row(sql, [id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)));
    let Some((input, keys)) = row.optional()? else { return Ok(()) };
    let mut input = json(input);
    if secrets::forget(&mut input) || keys {
        let sql = "UPDATE jobs SET input = ?2, forgotten = 1 WHERE id = ?1";
        transaction.execute(sql, params![id, input.to_string()])?;
    }
    Ok(())
}

/// A file that only its owner may read.
fn own_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// What was written as JSON; anything else was not written by this program.
fn json(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

fn facts(row: &Row<'_>) -> rusqlite::Result<(String, Facts)> {
    let status: String = row.get(2)?;
    let facts = Facts {
        place: row.get(1)?,
        // One that nobody knows is not begun again.
        status: Status::of_name(&status).unwrap_or(Status::Failed),
        submitted: row.get(3)?,
        queued: row.get(4)?,
        started: row.get(5)?,
        ended: row.get(6)?,
        retries: row.get(7)?,
        broken: row.get(8)?,
        bytes: row.get(9)?,
        policy: Policy { execution: row.get(10)?, ttl: row.get(11)? },
    };
    Ok((row.get(0)?, facts))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn facts(status: Status) -> Facts {
        Facts {
            place: 1,
            status,
            submitted: 1,
            queued: 1,
            started: None,
            ended: None,
            retries: 0,
            broken: 0,
            bytes: 0,
            policy: Policy::default(),
        }
    }

    fn submission(input: Value) -> Submission {
        Submission {
            id: "a".into(),
            input,
            policy: Policy { execution: Some(7), ttl: None },
            store: Some(json!({ "accessSecret": "S3CR3T" })),
            webhook: Some("https://h/w?k=S3CR3T".into()),
        }
    }

    fn add(store: &mut Store, job: &Submission) {
        store.add(job, &job.input.to_string(), &facts(Status::InQueue)).unwrap();
    }

    #[test]
    fn what_is_written_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let job = submission(json!({ "x": [1, "é"], "number": 0.1 }));
        add(&mut store, &job);
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        let all = store.all().unwrap();
        let expected = Facts { policy: job.policy, bytes: all[0].1.bytes, ..facts(Status::InQueue) };
        assert_eq!(all, [("a".to_owned(), expected)]);
        let asked = store.asked("a").unwrap().unwrap();
        assert_eq!((asked.input, asked.store), (job.input, job.store));
        assert!(store.asked("b").unwrap().is_none());
    }

    #[test]
    fn only_its_owner_can_read_it_and_only_one_process_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let mut store = Store::open(&folder).unwrap();
        add(&mut store, &submission(json!({})));
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let mut files = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            files += 1;
        }
        assert!(files >= 3, "{files}");
        assert!(matches!(Store::open(&folder), Err(StoreError::Taken(_))));
        drop(store);
        Store::open(&folder).unwrap();
    }

    /// Everything in the folder, as bytes.
    fn everything(folder: &Path) -> String {
        let read = |entry: io::Result<std::fs::DirEntry>| std::fs::read(entry.unwrap().path()).unwrap();
        let all: Vec<u8> = std::fs::read_dir(folder).unwrap().flat_map(read).collect();
        String::from_utf8_lossy(&all).into_owned()
    }

    #[test]
    fn secrets_of_a_job_that_is_over_are_nowhere_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let long = format!("https://h/{}?token=S3CR3T", "x/".repeat(20_000));
        add(&mut store, &submission(json!({ "dataset_url": long, "job_id": "j" })));
        assert!(everything(folder.path()).contains("S3CR3T"));
        let answer = Answered { output: Some(json!({ "a": 1 })), error: None };
        assert!(store.end("a", &facts(Status::Completed), &answer).unwrap());
        assert!(everything(folder.path()).contains("S3CR3T"), "the webhook cannot be told any more");
        let told = store.told("a").unwrap().unwrap();
        assert_eq!((told.webhook.as_str(), &told.input["job_id"]), ("https://h/w?k=S3CR3T", &json!("j")));
        assert_eq!(store.to_tell().unwrap(), ["a"]);
        store.webhook_is_done("a").unwrap();
        assert!(!everything(folder.path()).contains("S3CR3T"));
        assert!(store.told("a").unwrap().is_none() && store.is_forgotten("a").unwrap());
        assert_eq!(store.answered("a").unwrap(), answer);
    }

    #[test]
    fn deleted_jobs_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        add(&mut store, &submission(json!({ "dataset_url": "https://h/?token=S3CR3T" })));
        store.delete(&["a".to_owned(), "b".to_owned()]).unwrap();
        assert!(store.all().unwrap().is_empty() && !everything(folder.path()).contains("S3CR3T"));
    }

    #[test]
    fn files_of_a_newer_program_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(store);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Newer(_))));
    }

    #[test]
    fn what_is_no_database_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "x".repeat(4096)).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("queue's file"), "{error}");
    }
}
