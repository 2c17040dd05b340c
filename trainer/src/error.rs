//! Everything a run can fail of. Each variant says what is wrong, where, and what would be right.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as in "cannot read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file was read but says something it must not.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The caller asked for it.
    #[error("cancelled")]
    Cancelled,
    /// The run takes more memory than there is, and what would fit.
    #[error("{0}")]
    DoesNotFit(String),
    /// A request that cannot be carried out.
    #[error("{0}")]
    Invalid(String),
    /// An op refused.
    #[error(transparent)]
    Kernel(#[from] brightrun_kernels::Error),
    /// The tensor library refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::File { path: path.into(), reason: reason.into() }
    }

    /// One error for everything that is wrong with a file or folder; the list is cut after [`MAX_LISTED`] entries.
    pub(crate) fn problems(path: impl Into<PathBuf>, problems: &[String]) -> Self {
        Self::file(path, listed(problems))
    }
}

/// How many problems one error spells out.
pub(crate) const MAX_LISTED: usize = 20;

/// The problems as one text: a single one inline, several one below the other, "and N more" where there are too many.
pub(crate) fn listed(problems: &[String]) -> String {
    if let [problem] = problems {
        return problem.clone();
    }
    let mut text = format!("{} problems", problems.len());
    for problem in problems.iter().take(MAX_LISTED) {
        text.push_str("\n  - ");
        text.push_str(problem);
    }
    if problems.len() > MAX_LISTED {
        text.push_str(&format!("\n  and {} more", problems.len() - MAX_LISTED));
    }
    text
}
