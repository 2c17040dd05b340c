//! Memory as a card gives it, without the card: pieces are taken from an arena of no end by the rules of the real one, and
//! given back where they are dropped, as buffers are.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use brightrun_kernels::gpu::arena::{Arena, rounded};

/// More than any card has.
const ENDLESS: u64 = 1 << 60;

/// What gives pieces. Copies of it are the same one.
#[derive(Clone)]
pub(super) struct Room {
    state: Rc<RefCell<State>>,
}

/// A part of memory, as long as it is not dropped.
pub(super) struct Piece {
    state: Rc<RefCell<State>>,
    at: Option<u64>,
    bytes: u64,
}

struct State {
    arena: Arena,
    /// The end of the last byte that was ever taken.
    reach: u64,
    moment: Moment,
    kept: u64,
    most: Most,
}

/// The moment with the most in use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Most {
    /// In use then.
    pub(super) bytes: u64,
    /// Of these, inputs of layers.
    pub(super) kept: u64,
    pub(super) moment: Moment,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Moment {
    #[default]
    Loading,
    Forward(usize),
    Loss,
    Backward(usize),
}

// === impl Moment ===

impl fmt::Display for Moment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading => out.write_str("loading"),
            Self::Forward(layer) => write!(out, "forward of layer {layer}"),
            Self::Loss => out.write_str("loss"),
            Self::Backward(layer) => write!(out, "backward of layer {layer}"),
        }
    }
}

// === impl Room ===

impl Room {
    pub(super) fn new() -> Self {
        let arena = Arena::new(ENDLESS);
        let state = State { arena, reach: 0, moment: Moment::Loading, kept: 0, most: Most::default() };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    pub(super) fn take(&self, bytes: u64) -> Piece {
        let mut state = self.state.borrow_mut();
        let at = state.arena.take(bytes);
        state.reach = state.reach.max(at.unwrap_or_default() + rounded(bytes));
        if state.arena.used() > state.most.bytes {
            state.most = Most { bytes: state.arena.used(), kept: state.kept, moment: state.moment };
        }
        Piece { state: Rc::clone(&self.state), at, bytes }
    }

    /// What is taken from now on belongs to this moment, in which so many bytes are inputs of layers.
    pub(super) fn enter(&self, moment: Moment, kept: u64) {
        let mut state = self.state.borrow_mut();
        (state.moment, state.kept) = (moment, kept);
    }

    /// Looks for the most from now on.
    pub(super) fn forget_most(&self) {
        let mut state = self.state.borrow_mut();
        state.most = Most { bytes: state.arena.used(), kept: state.kept, moment: state.moment };
    }

    pub(super) fn most(&self) -> Most {
        self.state.borrow().most
    }

    pub(super) fn used(&self) -> u64 {
        self.state.borrow().arena.used()
    }

    /// How much memory there has to be: what is in use at most, and the gaps between that no piece fitted into.
    pub(super) fn reach(&self) -> u64 {
        self.state.borrow().reach
    }
}

// === impl Piece ===

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.state.borrow_mut().arena.give(at, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_that_are_too_short_count() {
        let room = Room::new();
        let short = room.take(1000);
        room.enter(Moment::Forward(3), 7);
        let behind = room.take(1);
        drop(short);
        assert_eq!(room.used(), 256);
        let long = room.take(2000);
        // 1,024 bytes in front of both are free, and too short for the last.
        assert_eq!((room.most().bytes, room.reach()), (256 + 2048, 1024 + 256 + 2048));
        assert_eq!((room.most().kept, room.most().moment.to_string()), (7, "forward of layer 3".into()));
        drop((behind, long));
        room.forget_most();
        assert_eq!((room.most().bytes, room.used()), (0, 0));
    }
}
