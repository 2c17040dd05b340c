//! RunPod's serverless worker protocol: jobs are taken, shown, stopped and answered over five addresses that the platform
//! gives the container in its environment.
//!
//! [`Endpoints`] are these addresses, and [`Client`] speaks to them. [`Serving`] is the worker, which does some [`Work`](crate::work::Work) with every
//! job: `arrived` reads what came, `held` knows which jobs are here, `heartbeat` tells the platform so, `answering` says what there is to say of one
//! job, in order.

mod answering;
mod arrived;
mod client;
mod endpoints;
mod heartbeat;
mod held;
mod serving;

pub use answering::Pace;
pub use client::{Client, ClientLimits};
pub use endpoints::{Endpoints, EndpointsError};
pub use serving::Serving;
