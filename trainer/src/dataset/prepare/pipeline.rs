//! Reading, tokenising and collecting at the same time, with little in memory.
//!
//! One thread reads batches of records, several parse and tokenise them, the caller's takes the results in order. Every
//! batch needs a ticket that comes back once its results are taken, so that a slow batch holds up the reader instead of
//! letting finished ones pile up behind it.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use super::{Progress, collect::Collector};
use crate::{
    Error, Result,
    dataset::{
        encode::{Encoded, Encoder, Workspace},
        finding::Finding,
        records::{Format, Record, Records},
    },
};

/// Bytes of records in a batch: thousands of lines, and still tens of milliseconds of work.
const BATCH_BYTES: usize = 512 << 10;

/// Batches between reader and collector, per tokenising thread: one in work, one waiting for it or for its turn.
const BATCHES_PER_THREAD: usize = 2;

/// What is known of the file's form once it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    pub(super) format: Option<Format>,
    pub(super) lines: u64,
}

/// The results of one batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Tokens of all examples, one after the other.
    pub(super) tokens: Vec<u32>,
    /// The examples, each with what tokenising found.
    pub(super) examples: Vec<(Encoded, Vec<Finding>)>,
    /// What reading and parsing found, and why examples were left out.
    pub(super) findings: Vec<Finding>,
}

/// Records on their way to a tokenising thread.
struct Task {
    index: u64,
    records: Vec<Record>,
    findings: Vec<Finding>,
    /// Bytes of the file up to the end of these records.
    read: u64,
}

/// Results on their way to the collector.
struct Done {
    index: u64,
    read: u64,
    batch: Result<Batch>,
}

/// Reads a file to its end. The first error in the order of the file ends the work.
pub(super) fn run(
    mut records: Records,
    encoder: &Encoder,
    threads: usize,
    bytes: u64,
    progress: Progress,
    collector: &mut Collector,
) -> Result<Read> {
    let threads = threads.max(1);
    let stop = AtomicBool::new(false);
    let (ticket, tickets) = channel();
    let (task, tasks) = channel();
    let (done, results) = channel();
    let tasks = Mutex::new(tasks);
    for _ in 0..threads * BATCHES_PER_THREAD {
        // The receiver lives.
        let _ = ticket.send(());
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || read(&mut records, tickets, task).map(|findings| (records, findings)));
        for _ in 0..threads {
            let (done, tasks, stop) = (done.clone(), &tasks, &stop);
            scope.spawn(move || work(encoder, tasks, done, stop));
        }
        drop(done);
        let collected = collect(results, ticket, bytes, progress, collector);
        stop.store(true, Ordering::Relaxed);
        let read = reader.join().unwrap_or_else(|panic| Err(panicked("reading the file", &*panic)));
        collected?;
        let (records, findings) = read?;
        collector.take(Batch { findings, ..Batch::default() })?;
        Ok(Read { format: records.format(), lines: records.lines() })
    })
}

/// The reader's thread: a batch for every ticket. Gives what was found after the last record.
fn read(records: &mut Records, tickets: Receiver<()>, tasks: Sender<Task>) -> Result<Vec<Finding>> {
    for index in 0.. {
        // Without the collector there is nobody to read for.
        if tickets.recv().is_err() {
            break;
        }
        let Some(batch) = records.next_batch(BATCH_BYTES)? else { break };
        let task = Task { index, records: batch, findings: records.findings(), read: records.bytes() };
        if tasks.send(task).is_err() {
            break;
        }
    }
    Ok(records.findings())
}

/// A tokenising thread.
fn work(encoder: &Encoder, tasks: &Mutex<Receiver<Task>>, done: Sender<Done>, stop: &AtomicBool) {
    let mut workspace = Workspace::default();
    loop {
        let task = match tasks.lock() {
            Ok(tasks) => tasks.recv(),
            Err(_) => return,
        };
        let Ok(Task { index, records, findings, read }) = task else { return };
        // A panic here would leave a gap that the collector waits for.
        let batch = catch_unwind(AssertUnwindSafe(|| encode(encoder, &records, findings, &mut workspace, stop)))
            .unwrap_or_else(|panic| Err(panicked("tokenising", &*panic)));
        if done.send(Done { index, read, batch }).is_err() {
            return;
        }
    }
}

fn encode(
    encoder: &Encoder,
    records: &[Record],
    findings: Vec<Finding>,
    workspace: &mut Workspace,
    stop: &AtomicBool,
) -> Result<Batch> {
    let mut batch = Batch { findings, ..Batch::default() };
    for record in records {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let parsed = record.parse();
        batch.findings.extend(parsed.findings);
        let Some(example) = parsed.example else { continue };
        let outcome = encoder.encode(&example, workspace, &mut batch.tokens)?;
        match outcome.encoded {
            Some(encoded) => batch.examples.push((encoded, outcome.findings)),
            None => batch.findings.extend(outcome.findings),
        }
    }
    Ok(batch)
}

/// The caller's thread: takes batches in order, however they come.
fn collect(
    results: Receiver<Done>,
    tickets: Sender<()>,
    bytes: u64,
    progress: Progress,
    collector: &mut Collector,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for done in results {
        early.insert(done.index, done);
        while let Some(done) = early.remove(&next) {
            collector.take(done.batch?)?;
            next += 1;
            // The reader may have come to the end.
            let _ = tickets.send(());
            if progress(done.read.min(bytes), bytes).is_break() {
                return Err(Error::Cancelled);
            }
        }
    }
    Ok(())
}

fn panicked(what: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::Invalid(format!(
        "{what} failed unexpectedly ({}); this is a fault of the program",
        text.unwrap_or("no reason")
    ))
}
