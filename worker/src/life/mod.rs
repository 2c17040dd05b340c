//! The life of a job, from its arrival to its answer.

mod ending;
mod fenced;
mod lease;
mod limits;
mod models;
mod shown;
mod states;
mod task;
mod training;

pub use crate::computer::Wanted;
pub use lease::{Lease, LeaseError, LeaseTimes};
pub use limits::{RUNPODS_LIFE, TimeLimit};
pub use models::Models;
pub(crate) use models::revision;
pub use training::{Settings, Training};
