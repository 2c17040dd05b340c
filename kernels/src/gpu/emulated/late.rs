//! What lanes are asked, done as late as it may be: a result that is used before somebody has waited for it is not there.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use crate::gpu::lanes::{LANES, Lane};
use crate::gpu::{Argument, Kernel, Shape};

/// Something that a GPU is asked to do.
pub(super) enum Asked {
    Copy { from: u64, to: u64, bytes: usize },
    Fill { at: u64, value: u8, bytes: usize },
    Launch { kernel: Kernel, shape: Shape, arguments: Vec<Argument> },
}

/// What lanes were asked and have not done.
pub(super) struct Late {
    /// Otherwise all is done at once.
    late: bool,
    current: Cell<Option<Lane>>,
    /// Times that the lanes were asked.
    times: Cell<u64>,
    waiting: RefCell<[VecDeque<(u64, Asked)>; LANES]>,
}

// === impl Late ===

impl Late {
    pub(super) fn new(late: bool) -> Self {
        Self { late, current: Cell::default(), times: Cell::default(), waiting: RefCell::default() }
    }

    pub(super) fn begin(&self, lane: Lane) {
        self.current.set(Some(lane));
        self.times.set(self.times.get() + 1);
    }

    pub(super) fn end(&self) -> u64 {
        self.current.set(None);
        self.times.get()
    }

    /// Keeps what a lane is asked; gives back what is to be done now.
    pub(super) fn note(&self, asked: Asked) -> Option<Asked> {
        match self.current.get().filter(|_| self.late) {
            Some(lane) => {
                self.waiting.borrow_mut()[lane.index()].push_back((self.times.get(), asked));
                None
            }
            None => Some(asked),
        }
    }

    /// What the lane has to do next, of what it was asked up to that time.
    pub(super) fn next(&self, lane: Lane, time: u64) -> Option<Asked> {
        let mut waiting = self.waiting.borrow_mut();
        waiting[lane.index()].pop_front_if(|(asked, _)| *asked <= time).map(|(_, asked)| asked)
    }
}
