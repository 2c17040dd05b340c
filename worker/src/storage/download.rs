//! The attempts: ask, receive, and where that fails and may be better next time, wait and go on from what is there.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{task::spawn_blocking, time::Instant};

use super::{
    FetchProgress, Fetched,
    error::{Failure, FetchError, Trouble, TroubleKind},
    expiry::for_people,
    fetching::Fetching,
    link::Link,
    opened::{Opened, Rest},
    partial::{Content, Finished, Partial, Validator},
    s3::Object,
};

/// Bytes are written to disk in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;

/// Where the bytes come from.
pub(super) enum Origin {
    Link(Link),
    Object(Box<Object>),
}

impl Origin {
    async fn open(&self, rest: Option<&Rest>, total: Option<u64>) -> Result<Opened, Failure> {
        match self {
            Self::Link(link) => link.open(rest, total).await,
            Self::Object(object) => object.open(rest, total).await,
        }
    }
}

/// A fetch over the network.
pub(super) struct Download<'a> {
    origin: Origin,
    fetching: Arc<Fetching>,
    progress: &'a (dyn Fn(FetchProgress) + Send + Sync),
    place: String,
    target: PathBuf,
    /// Taken while the disk works.
    partial: Option<Partial>,
    /// Bytes that came over the wire in this fetch.
    received: u64,
    resumed: u32,
    changes: u32,
    /// What the content was when it was last asked for in this fetch.
    seen: Option<Validator>,
}

// === impl Download ===

impl<'a> Download<'a> {
    /// Opens what an earlier fetch left at `target`. `identity` is the address without what differs from link to link.
    pub(super) async fn open(
        origin: Origin,
        fetching: Arc<Fetching>,
        progress: &'a (dyn Fn(FetchProgress) + Send + Sync),
        place: String,
        identity: String,
        target: &Path,
    ) -> Result<Self, FetchError> {
        let path = target.to_owned();
        let opened = spawn_blocking(move || Partial::open(&path, &identity)).await.map_err(io::Error::other);
        let opened = opened.and_then(|opened| opened).map_err(disk(target))?;
        let partial = Some(opened.ok_or_else(|| FetchError::Busy { path: target.to_owned() })?);
        let target = target.to_owned();
        Ok(Self { origin, fetching, progress, place, target, partial, received: 0, resumed: 0, changes: 0, seen: None })
    }

    /// Brings the file to its place.
    pub(super) async fn run(mut self) -> Result<Fetched, FetchError> {
        let outcome = self.attempts().await;
        let Some(partial) = self.partial.take() else {
            return Err(outcome
                .err()
                .unwrap_or_else(|| disk(&self.target)(io::Error::other("the disk's thread ended"))));
        };
        if let Err(error) = outcome {
            let keeps = error.keeps_what_is_there();
            let end = if keeps { Partial::keep } else { Partial::discard };
            let kept = spawn_blocking(move || end(partial)).await;
            if let Ok(Err(problem)) = kept {
                tracing::warn!("what was fetched so far cannot be kept: {problem}");
            }
            return Err(error);
        }
        self.finish(partial).await
    }

    async fn finish(self, partial: Partial) -> Result<Fetched, FetchError> {
        let (place, fetching) = (self.place, self.fetching);
        let most = fetching.policy.max_bytes;
        let etag = match &partial.content.validator {
            Some(Validator::ETag(tag)) => Some(tag.clone()),
            _ => None,
        };
        let work = move || partial.finish(most, &|| fetching.is_cancelled());
        let finished = spawn_blocking(work).await.map_err(io::Error::other);
        match finished.and_then(|finished| finished).map_err(disk(&self.target))? {
            Finished::Whole { bytes, sha256 } => Ok(Fetched { bytes, sha256, etag, resumed: self.resumed }),
            Finished::TooLarge => {
                Err(FetchError::TooLarge { place, found: "decompressed it has more bytes".into(), most })
            }
            Finished::Damaged(why) => Err(FetchError::Damaged { place, why }),
            Finished::Stopped => Err(FetchError::Cancelled { place }),
        }
    }

    async fn attempts(&mut self) -> Result<(), FetchError> {
        let fetching = self.fetching.clone();
        let limits = &fetching.limits;
        let mut failed = 0;
        loop {
            let before = self.received;
            let trouble = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(trouble)) => trouble,
            };
            failed = if self.received - before >= limits.progress { 1 } else { failed + 1 };
            if failed >= limits.attempts {
                return Err(trouble.into_error(self.place.clone(), failed));
            }
            if trouble.anew {
                self.on_disk(|partial| partial.restart(Content::default())).await?;
            }
            let wait = trouble.wait.unwrap_or_default();
            if wait > limits.longest_retry_after {
                let why = format!("{trouble}, and asks to come back in {}", for_people(wait));
                return Err(FetchError::ServerFailed { place: self.place.clone(), attempts: failed, why });
            }
            tracing::info!("{}: {trouble}; trying again", self.place);
            match fetching.pause(limits.pause(failed).max(wait)).await {
                Err(Failure::Final(error)) => return Err(error),
                _ => continue,
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), Failure> {
        let Some(partial) = &self.partial else { return Err(disk(&self.target)(io::Error::other("closed")).into()) };
        let (from, total) = (partial.bytes(), partial.content.total);
        let validator = partial.content.validator.clone().filter(|_| from > 0);
        let rest = validator.map(|validator| Rest { from, validator });
        let mut opened = self.origin.open(rest.as_ref(), total).await?;
        self.begin(&opened).await?;
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        let received = self.receive(&mut opened, &mut buffer).await;
        // What came before a failure counts as well.
        self.flush(&mut buffer).await?;
        received?;
        let expected = opened.length.map(|length| opened.start + length);
        if expected.is_some_and(|expected| expected != self.bytes()) {
            return Err(Trouble::new(TroubleKind::ServerFailed, "the answer ended before the file did").into());
        }
        if self.fetching.within(self.fetching.limits.idle, "the end", opened.flow.sends_more()).await? {
            return Err(Trouble::broken_anew("it sent more bytes than it had announced").into());
        }
        (self.progress)(FetchProgress { bytes: self.bytes(), total: Some(self.bytes()) });
        Ok(())
    }

    /// Compares the answer's head with what is there and what is allowed.
    async fn begin(&mut self, opened: &Opened) -> Result<(), Failure> {
        let most = self.fetching.policy.max_bytes;
        if let Some(total) = opened.content.total.filter(|total| *total > most) {
            return Err(
                FetchError::TooLarge { place: self.place.clone(), found: format!("{total} bytes"), most }.into()
            );
        }
        if opened.start > 0 {
            self.resumed += 1;
        } else {
            let now = &opened.content.validator;
            if self.seen.is_some() && self.seen != *now {
                self.changes += 1;
            }
            self.seen.clone_from(now);
            if self.changes >= self.fetching.limits.changes {
                return Err(FetchError::Changed { place: self.place.clone(), times: self.changes }.into());
            }
            let content = opened.content.clone();
            self.on_disk(|partial| partial.restart(content)).await?;
        }
        (self.progress)(FetchProgress { bytes: self.bytes(), total: opened.content.total });
        Ok(())
    }

    async fn receive(&mut self, opened: &mut Opened, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        let fetching = self.fetching.clone();
        let (limits, most) = (&fetching.limits, fetching.policy.max_bytes);
        let needed = (limits.minimum_rate as f64 * limits.rate_window.as_secs_f64()) as u64;
        let (mut window, mut in_window) = (Instant::now(), 0);
        while let Some(piece) = fetching.within(limits.idle, "the next byte", opened.flow.next()).await?? {
            buffer.extend_from_slice(&piece);
            self.received += piece.len() as u64;
            in_window += piece.len() as u64;
            if self.bytes() + buffer.len() as u64 > most {
                return Err(FetchError::TooLarge {
                    place: self.place.clone(),
                    found: "it has more bytes".into(),
                    most,
                }
                .into());
            }
            if window.elapsed() >= limits.rate_window {
                if in_window < needed {
                    let why = format!("{in_window} bytes came in {}", for_people(limits.rate_window));
                    return Err(Trouble::new(TroubleKind::TooSlow, why).into());
                }
                (window, in_window) = (Instant::now(), 0);
            }
            if buffer.len() >= WRITE_BYTES {
                let begin = Instant::now();
                self.flush(buffer).await?;
                (self.progress)(FetchProgress { bytes: self.bytes(), total: opened.content.total });
                // The server is not to blame for our disk.
                window += begin.elapsed();
            }
        }
        Ok(())
    }

    async fn flush(&mut self, buffer: &mut Vec<u8>) -> Result<(), FetchError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::replace(buffer, Vec::with_capacity(WRITE_BYTES));
        self.on_disk(move |partial| partial.append(&bytes)).await
    }

    fn bytes(&self) -> u64 {
        self.partial.as_ref().map_or(0, Partial::bytes)
    }

    /// Lets a thread that may wait for the disk work on the file.
    async fn on_disk(
        &mut self,
        work: impl FnOnce(&mut Partial) -> io::Result<()> + Send + 'static,
    ) -> Result<(), FetchError> {
        let Some(mut partial) = self.partial.take() else { return Err(disk(&self.target)(io::Error::other("closed"))) };
        let worked = spawn_blocking(move || {
            let outcome = work(&mut partial);
            (partial, outcome)
        });
        let (partial, outcome) = worked.await.map_err(io::Error::other).map_err(disk(&self.target))?;
        self.partial = Some(partial);
        outcome.map_err(disk(&self.target))
    }
}

/// An error of this machine's disk.
pub(super) fn disk(target: &Path) -> impl Fn(io::Error) -> FetchError {
    move |error| FetchError::Disk { path: target.to_owned(), error }
}
