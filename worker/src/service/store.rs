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
    #[error(
        "{0} cannot be opened: {1}; see that its disk has room and works. A damaged file can be moved away, and the queue is empty \
         then"
    )]
    Unreadable(String, rusqlite::Error),
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
        let opened = connection(&path).map_err(|error| StoreError::Unreadable(shown(&path), error))?;
        let connection = opened.ok_or_else(|| StoreError::Newer(shown(&path)))?;
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

/// A connection to this file, which has its tables then; nothing where a newer program has written it.
fn connection(path: &Path) -> rusqlite::Result<Option<Connection>> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // What is deleted or replaced is overwritten.
    connection.pragma_update(None, "secure_delete", true)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > VERSION {
        return Ok(None);
    }
    connection.execute_batch(TABLE)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    Ok(Some(connection))
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
mod tests;
