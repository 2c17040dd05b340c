//! Everything that leaves a run while it goes.

use std::sync::Arc;

use crate::Error;
use crate::Result;
use crate::artifacts::history::History;
use crate::checkpoint::{Ended, FileSystem, Storage};
use crate::clock::Clock;
use crate::engine::GpuToUse;
use crate::events::{Event, EventSink, Stage};
use crate::stop::{Stop, StopKind};

/// What a run is surrounded by.
pub struct Surroundings<'a> {
    /// Hears of everything.
    pub sink: &'a dyn EventSink,
    /// Tells the time.
    pub clock: &'a dyn Clock,
    /// Asks it to stop.
    pub stop: &'a Stop,
    /// Most memory in use so far, where that can be told.
    pub peak_memory: &'a (dyn Fn() -> Option<u64> + Sync),
    /// Where checkpoints are written.
    pub storage: Arc<dyn Storage>,
    /// The GPU to compute on; without one it is the processor.
    pub gpu: Option<GpuToUse<'a>>,
}

/// The surroundings, and what was told so far.
pub(super) struct Watch<'a> {
    pub(super) around: &'a Surroundings<'a>,
    pub(super) history: History,
    pub(super) warnings: Vec<String>,
    /// The newest step that a checkpoint holds.
    pub(super) saved_step: u64,
}

// === impl Surroundings ===

impl<'a> Surroundings<'a> {
    /// On the processor, with checkpoints in the file system, and nobody who can tell the memory.
    pub fn new(sink: &'a dyn EventSink, clock: &'a dyn Clock, stop: &'a Stop) -> Self {
        Self { sink, clock, stop, peak_memory: &|| None, storage: Arc::new(FileSystem), gpu: None }
    }
}

// === impl Watch ===

impl<'a> Watch<'a> {
    pub(super) fn new(around: &'a Surroundings<'a>, warnings: Vec<String>) -> Self {
        Self { around, history: History::default(), warnings, saved_step: 0 }
    }

    pub(super) fn emit(&mut self, event: &Event) {
        self.history.record(event);
        self.around.sink.emit(event);
    }

    pub(super) fn stage(&mut self, stage: Stage) {
        self.emit(&Event::Stage { stage });
    }

    pub(super) fn warn(&mut self, message: String) {
        if !self.warnings.contains(&message) {
            self.warnings.push(message.clone());
        }
        self.emit(&Event::Warning { message });
    }

    /// What the run's owner was told before it was interrupted.
    pub(super) fn recall(&mut self, warnings: &[String]) {
        let new: Vec<String> = warnings.iter().filter(|warning| !self.warnings.contains(warning)).cloned().collect();
        self.warnings.extend(new);
    }

    /// Tells what became of checkpoints. One that could not be saved is no reason to end a run: the next one may be.
    pub(super) fn saved(&mut self, ended: Vec<Ended>) {
        for end in ended {
            match end {
                Ok(saved) => {
                    self.saved_step = saved.step;
                    self.emit(&Event::Saved { step: saved.step, bytes: saved.bytes });
                    saved.notes.into_iter().for_each(|note| self.warn(note));
                }
                Err(error) => self.warn(error.to_string()),
            }
        }
    }

    /// Seconds of the clock.
    pub(super) fn now(&self) -> f64 {
        self.around.clock.elapsed().as_secs_f64()
    }

    /// An error where somebody asked to stop. Whatever is at hand is dropped: nothing of it is noted before it is whole.
    pub(super) fn go_on(&self) -> Result<()> {
        if self.around.stop.asked().is_some() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The run is interrupted, and is to go on later.
    pub(super) fn is_paused(&self) -> bool {
        self.around.stop.asked() == Some(StopKind::Pause)
    }
}
