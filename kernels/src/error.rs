//! What can go wrong in an op: always a caller's mistake or a damaged weight, never a silent wrong number.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tensors whose shapes do not fit the op.
    #[error("{op}: {what}: expected {expected}, found {found}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// The shape or size the op needs.
        expected: String,
        /// The shape or size it was given.
        found: String,
    },
    /// A value outside of what the op can work with.
    #[error("{op}: {reason}")]
    Invalid {
        /// The op that refused.
        op: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A GPU that did not do what it was asked.
    #[error("{what}: {reason}")]
    Gpu {
        /// The kernel, or what else was asked.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// A GPU without enough memory left.
    #[error(
        "GPU: {} MiB were asked for; {} of {} MiB are in use, and the longest free piece has {} MiB",
        wanted >> 20, used >> 20, size >> 20, gap >> 20
    )]
    OutOfGpuMemory {
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes that there are.
        size: u64,
        /// Bytes of the longest free piece.
        gap: u64,
    },
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn shape(
        op: &'static str,
        what: &'static str,
        expected: impl std::fmt::Debug,
        found: impl std::fmt::Debug,
    ) -> Self {
        Self::Shape { op, what, expected: format!("{expected:?}"), found: format!("{found:?}") }
    }

    pub(crate) fn invalid(op: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { op, reason: reason.into() }
    }
}

// Inside a candle op only candle's own error can travel.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}
