//! What the project's end-to-end checks share.
#![forbid(unsafe_code)]

pub mod chat_golden;
pub mod checkpoints;
pub mod child;
pub mod faults;
pub mod golden;
pub mod gpu_step;
pub mod platform;
pub mod steps;
pub mod toy;
pub mod waiting;
pub mod whole_graph;
