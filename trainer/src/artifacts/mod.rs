//! What a run leaves beside the adapter, and how files are written.

pub mod atomic;
pub mod loss_curve;
pub mod metrics;
