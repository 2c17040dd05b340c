//! The life of a job, from its arrival to its answer.

mod lease;
mod shown;

pub use lease::{Lease, LeaseError, LeaseTimes};
pub use shown::Shown;
