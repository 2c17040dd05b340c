//! Work beside the main queue of a GPU.
//!
//! What is asked inside of [`Gpu::beside`] begins once all is done that the main queue was asked before, and runs beside what
//! that is asked afterwards, until [`Task::join`] has the main queue wait. Between the two neither may write what the other
//! one reads or writes: asking for that is an error at once, on every GPU. Memory that nobody holds any more is given out
//! again only when the main queue has waited for the last task that uses it. What kernels reach through tables of addresses is
//! not seen here; an emulated GPU with an odd seed sees it, which leaves tasks undone until somebody waits for them.

use std::ops::Range;

use super::{Backend, Gpu};
use crate::{Error, Result};

/// A queue beside the main one. Each does its own work in the order of the asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Kernels that prepare what the main queue takes next.
    Kernels,
    /// Copies between the GPU's memory and that of the host.
    Copies,
}

/// How many lanes there are.
pub(super) const LANES: usize = 2;

/// Work that was asked beside the main queue. One that is dropped is joined.
#[derive(Debug)]
#[must_use = "the main queue waits for it as soon as it is dropped"]
pub struct Task {
    gpu: Gpu,
    lane: Lane,
    number: u64,
    mark: u64,
    joined: bool,
}

/// What the lanes have been asked, and what of it the main queue has not waited for.
#[derive(Default)]
pub(super) struct Lanes {
    /// Who is asked now; nobody is the main queue.
    current: Option<Lane>,
    begun: [u64; LANES],
    uses: Vec<Use>,
    held: Vec<Piece>,
    failure: Option<Error>,
}

/// Memory that a task reads or writes.
struct Use {
    lane: Lane,
    task: u64,
    memory: Range<u64>,
    writes: bool,
}

/// Memory as the backend knows it.
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: usize,
    pub(super) on_host: bool,
}

// === impl Gpu ===

impl Gpu {
    /// Asks for work on a lane: it begins when all that was asked until now is done, and nothing waits for it before the task
    /// is joined. Values of the host cannot be moved meanwhile but from and to a [`super::HostBuffer`].
    pub fn beside(&self, lane: Lane, work: impl FnOnce() -> Result<()>) -> Result<Task> {
        let number = self.lanes.borrow_mut().begin(lane)?;
        let begun = self.backend.begin(lane);
        let worked = begun.and_then(|()| work());
        self.lanes.borrow_mut().current = None;
        let task = Task { gpu: self.clone(), lane, number, mark: self.backend.end(lane)?, joined: false };
        worked.map(|()| task)
    }

    /// Notes that somebody reads these bytes or writes them.
    pub(super) fn touch(&self, what: &str, uses: impl Iterator<Item = (Range<u64>, bool)>) -> Result<()> {
        let mut lanes = self.lanes.borrow_mut();
        if lanes.uses.is_empty() && lanes.current.is_none() {
            return Ok(());
        }
        uses.into_iter().try_for_each(|(memory, writes)| lanes.touch(what, memory, writes))
    }

    /// Fails where a lane is asked, which cannot do what waits for the host.
    pub(super) fn of_main_queue(&self, what: &str) -> Result<()> {
        match self.lanes.borrow().current {
            None => Ok(()),
            Some(lane) => {
                Err(failed(what, format!("the host waits for it, so it cannot be asked of the lane {lane:?}")))
            }
        }
    }

    /// Whether the main queue is asked now.
    pub(super) fn asks_main_queue(&self) -> bool {
        self.lanes.borrow().current.is_none()
    }

    /// Gives memory back as soon as no task uses it.
    pub(super) fn release(&self, piece: Piece) {
        let used = self.lanes.borrow().uses(&piece);
        if used {
            self.lanes.borrow_mut().held.push(piece);
        } else {
            piece.release(&*self.backend);
        }
    }

    /// What went wrong in a task that was dropped.
    pub(super) fn dropped_failure(&self) -> Result<()> {
        self.lanes.borrow_mut().failure.take().map_or(Ok(()), Err)
    }

    /// Nothing is under way any more.
    pub(super) fn all_joined(&self) {
        let begun = self.lanes.borrow().begun;
        Lane::ALL.into_iter().zip(begun).for_each(|(lane, number)| self.release_after(lane, number));
    }

    fn join(&self, lane: Lane, number: u64, mark: u64) -> Result<()> {
        let joined = self.backend.join(lane, mark);
        self.release_after(lane, number);
        joined
    }

    fn release_after(&self, lane: Lane, number: u64) {
        let free = self.lanes.borrow_mut().joined(lane, number);
        free.into_iter().for_each(|piece| piece.release(&*self.backend));
    }
}

// === impl Task ===

impl Task {
    /// Has the main queue wait for it: whatever is asked from now on comes after it. The host does not wait.
    pub fn join(mut self) -> Result<()> {
        self.joined = true;
        self.gpu.join(self.lane, self.number, self.mark)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.joined {
            return;
        }
        if let Err(error) = self.gpu.join(self.lane, self.number, self.mark) {
            self.gpu.lanes.borrow_mut().failure.get_or_insert(error);
        }
    }
}

// === impl Lane ===

impl Lane {
    pub(super) const ALL: [Self; LANES] = [Self::Kernels, Self::Copies];

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

// === impl Lanes ===

impl Lanes {
    fn begin(&mut self, lane: Lane) -> Result<u64> {
        if let Some(current) = self.current {
            return Err(failed("work beside the main queue", format!("the lane {current:?} is being asked already")));
        }
        self.current = Some(lane);
        self.begun[lane.index()] += 1;
        Ok(self.begun[lane.index()])
    }

    fn touch(&mut self, what: &str, memory: Range<u64>, writes: bool) -> Result<()> {
        if memory.is_empty() {
            return Ok(());
        }
        let strangers = self.uses.iter().filter(|used| Some(used.lane) != self.current && (used.writes || writes));
        if let Some(used) = strangers.into_iter().find(|used| overlap(&used.memory, &memory)) {
            let (theirs, ours) = (word(used.writes), word(writes));
            let reason = format!("it {ours} memory that a task of the lane {:?} {theirs}: join that first", used.lane);
            return Err(failed(what, reason));
        }
        if let Some(lane) = self.current {
            self.uses.push(Use { lane, task: self.begun[lane.index()], memory, writes });
        }
        Ok(())
    }

    fn uses(&self, piece: &Piece) -> bool {
        self.uses.iter().any(|used| overlap(&used.memory, &piece.memory()))
    }

    /// Forgets tasks of a lane up to this one, and says what may be given back now.
    fn joined(&mut self, lane: Lane, number: u64) -> Vec<Piece> {
        self.uses.retain(|used| used.lane != lane || used.task > number);
        let (held, free) = std::mem::take(&mut self.held).into_iter().partition(|piece| self.uses(piece));
        self.held = held;
        free
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn word(writes: bool) -> &'static str {
    if writes { "writes" } else { "reads" }
}

fn failed(what: &str, reason: String) -> Error {
    Error::Gpu { what: what.into(), reason }
}

// === impl Piece ===

impl Piece {
    fn memory(&self) -> Range<u64> {
        self.address..self.address + self.bytes as u64
    }

    fn release(&self, backend: &dyn Backend) {
        if self.on_host {
            backend.release_host(self.address, self.bytes);
        } else {
            backend.release(self.address, self.bytes);
        }
    }
}

#[cfg(all(test, feature = "emulation"))]
mod tests;
