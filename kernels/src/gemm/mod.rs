//! `dst = [dst +] alpha · lhs · rhs` on strided `f32` matrices: a safe door to the `gemm` crate. Shapes and bounds are
//! checked once per call; the result does not depend on the number of threads, since the threads share out rows and
//! columns of `dst` and never the sum.

pub mod gpu;
#[cfg(test)]
mod tests;
mod view;

pub use view::{MatMut, MatRef};

/// What happens to the old values of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// They are not read (not even when they are NaN).
    Overwrite,
    /// The product is added to them.
    Add,
}

/// How many threads one multiplication may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Only the caller's: for work that is already spread over threads.
    One,
    /// All threads of the current rayon pool, if the product is large enough to gain from it.
    All,
}

/// Products with fewer multiply-adds than this stay on one thread: about 30 µs of work, where waking a pool would cost
/// as much as it saves.
const PARALLEL_WORK: usize = 1 << 21;

/// `dst = alpha · lhs · rhs`, or `dst += alpha · lhs · rhs`.
///
/// # Panics
/// If the shapes of the three matrices do not fit each other: ops check their arguments before they come here.
pub fn gemm(dst: MatMut<'_>, accumulate: Accumulate, alpha: f32, lhs: MatRef<'_>, rhs: MatRef<'_>, threads: Threads) {
    let (m, n, k) = (dst.rows(), dst.columns(), lhs.columns());
    assert!(
        lhs.rows() == m && rhs.columns() == n && rhs.rows() == k,
        "{m} x {n} = {} x {k} · {} x {}",
        lhs.rows(),
        rhs.rows(),
        rhs.columns()
    );
    if m == 0 || n == 0 {
        return;
    }
    // `unsafe` below relies on this; the constructors promise it, so it never fires.
    assert!(
        dst.shape.fits(dst.data.len()) && lhs.shape.fits(lhs.data.len()) && rhs.shape.fits(rhs.data.len()),
        "a matrix exceeds its values"
    );
    let parallel = threads == Threads::All && m.saturating_mul(n).saturating_mul(k) >= PARALLEL_WORK;
    let workers = if parallel { rayon::current_num_threads() } else { 1 };
    let parallelism = if workers > 1 { gemm::Parallelism::Rayon(workers) } else { gemm::Parallelism::None };
    let add = accumulate == Accumulate::Add;
    // SAFETY: `fits` proved that every index `i * row_stride + j * column_stride` with `i`, `j` inside the shapes lies in
    // the slice behind its pointer. `dst` is borrowed mutably, so it overlaps neither input, and its elements are
    // distinct places (`row_stride >= columns` with `column_stride == 1`, or the transpose of that), so threads that own
    // different elements do not race. Inside the crate, `alpha` scales the old destination and `beta` the product.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.as_mut_ptr(),
            dst.shape.column_stride as isize,
            dst.shape.row_stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.shape.column_stride as isize,
            lhs.shape.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.shape.column_stride as isize,
            rhs.shape.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
