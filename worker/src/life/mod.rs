//! The life of a job, from its arrival to its answer.

mod ending;
mod lease;
mod limits;
mod models;
mod shown;
mod training;

pub use lease::{Lease, LeaseError, LeaseTimes};
pub use limits::TimeLimit;
pub use models::Models;
pub use training::{Settings, Training};
