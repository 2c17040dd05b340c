//! The life of a job, from its arrival to its answer.

mod ending;
mod lease;
mod limits;
mod shown;

pub use ending::{Delivered, failed, succeeded};
pub use lease::{Lease, LeaseError, LeaseTimes};
pub use limits::TimeLimit;
pub use shown::Shown;
