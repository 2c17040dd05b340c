//! Lets parallel tasks write to disjoint parts of one buffer where the parts are not contiguous chunks
//! (a head's columns in every row, say).

use std::marker::PhantomData;

/// A mutable buffer shared by tasks that promise to touch different elements.
#[derive(Clone, Copy)]
pub(crate) struct Disjoint<'a> {
    pointer: *mut f32,
    length: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `slice`, whose callers promise that concurrent slices do not overlap.
unsafe impl Send for Disjoint<'_> {}
// SAFETY: as above.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self { pointer: values.as_mut_ptr(), length: values.len(), lifetime: PhantomData }
    }

    /// The elements `start..start + length`.
    ///
    /// # Safety
    /// No other live slice, in this or another thread, may overlap the range.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &mut [f32] {
        assert!(start.checked_add(length).is_some_and(|end| end <= self.length), "disjoint slice out of bounds");
        // SAFETY: in bounds by the assertion; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length) }
    }
}
