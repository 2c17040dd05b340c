//! A run: data, model, steps, adapter. No network, no environment variables, no clock-dependent results.
#![forbid(unsafe_code)]

pub mod adapters;
pub mod artifacts;
pub mod batch;
pub mod cards;
pub mod checkpoint;
pub mod clock;
pub mod config;
pub mod dataset;
pub mod demo;
mod engine;
mod error;
pub mod evaluate;
pub mod events;
mod file_sum;
pub mod generate;
pub mod gpu;
pub mod lora;
pub mod merge;
pub mod model;
pub mod optim;
pub mod plan;
pub mod proof;
pub mod run;
pub mod schedule;
pub mod step;
pub mod stop;
pub mod weights;

pub use brightrun_kernels::allocator;
pub use error::{Error, Result};
