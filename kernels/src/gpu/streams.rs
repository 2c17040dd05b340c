//! The queues of a card, and the events by which they wait for each other.

use std::cell::{Cell, RefCell};

use cudarc::driver::{DriverError, result, sys};

use super::lanes::{LANES, Lane};

type Outcome<T> = std::result::Result<T, DriverError>;

/// The main queue and the lanes beside it.
pub(super) struct Streams {
    main: sys::CUstream,
    lanes: [sys::CUstream; LANES],
    /// Where the main queue was when a lane was asked last. Whoever waits for it has taken note when it is recorded anew.
    forked: sys::CUevent,
    /// Events that nobody waits for any more.
    free: RefCell<Vec<sys::CUevent>>,
    all: RefCell<Vec<sys::CUevent>>,
    current: Cell<Option<Lane>>,
}

// === impl Streams ===

impl Streams {
    /// The main queue goes before the lanes where both have blocks to run: these take what it leaves.
    pub(super) fn open() -> Outcome<Self> {
        let (least, greatest) = result::stream::get_priority_range()?;
        let stream = |priority| result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, priority);
        let main = stream(greatest)?;
        let [kernels, copies] = Lane::ALL.map(|_| stream(least));
        let forked = event()?;
        Ok(Self {
            main,
            lanes: [kernels?, copies?],
            forked,
            free: RefCell::default(),
            all: RefCell::new(vec![forked]),
            current: Cell::new(None),
        })
    }

    pub(super) fn main(&self) -> sys::CUstream {
        self.main
    }

    /// The queue that is asked now.
    pub(super) fn current(&self) -> sys::CUstream {
        self.current.get().map_or(self.main, |lane| self.lanes[lane.index()])
    }

    pub(super) fn begin(&self, lane: Lane) -> Outcome<()> {
        self.current.set(Some(lane));
        // SAFETY: streams and event are ours.
        unsafe {
            result::event::record(self.forked, self.main)?;
            wait(self.lanes[lane.index()], self.forked)
        }
    }

    /// An event behind all that the lane was asked, as a number.
    pub(super) fn end(&self, lane: Lane) -> Outcome<u64> {
        self.current.set(None);
        let known = self.free.borrow_mut().pop();
        let event = match known {
            Some(event) => event,
            None => {
                let event = event()?;
                self.all.borrow_mut().push(event);
                event
            }
        };
        // SAFETY: stream and event are ours.
        unsafe { result::event::record(event, self.lanes[lane.index()]) }?;
        Ok(event as u64)
    }

    pub(super) fn join(&self, mark: u64) -> Outcome<()> {
        let event = mark as sys::CUevent;
        // SAFETY: streams and event are ours: the mark is one of `end`.
        unsafe { wait(self.main, event) }?;
        if self.current.get().is_some() {
            // SAFETY: as above.
            unsafe { wait(self.current(), event) }?;
        }
        self.free.borrow_mut().push(event);
        Ok(())
    }

    pub(super) fn synchronize(&self) -> Outcome<()> {
        // SAFETY: the streams are ours.
        std::iter::once(self.main)
            .chain(self.lanes)
            .try_for_each(|stream| unsafe { result::stream::synchronize(stream) })
    }

    /// Waits for everything and destroys it. What fails now is lost with the process.
    ///
    /// # Safety
    /// Nobody uses any of it afterwards.
    pub(super) unsafe fn close(&self) {
        let _ = self.synchronize();
        // SAFETY: streams and events are ours, and this is the last time.
        unsafe {
            for event in self.all.take() {
                let _ = result::event::destroy(event);
            }
            for stream in std::iter::once(self.main).chain(self.lanes) {
                let _ = result::stream::destroy(stream);
            }
        }
    }
}

fn event() -> Outcome<sys::CUevent> {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
}

/// # Safety
/// Both are there.
unsafe fn wait(stream: sys::CUstream, event: sys::CUevent) -> Outcome<()> {
    // SAFETY: as the caller says.
    unsafe { result::stream::wait_event(stream, event, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
}
