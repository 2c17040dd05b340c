//! The life of a job, from its arrival to its answer.

mod shown;

pub use shown::Shown;
