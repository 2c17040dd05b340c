//! The same jobs over HTTP on one machine: a superset of the API of RunPod's endpoints and of its SDK's local server.
//!
//! [`Service`] is a queue, one job at a time at some [`Work`](crate::work::Work), and a server. `store` keeps queue and
//! history on disk, `live` has them in memory, `queue` changes both, `running` takes jobs out of it, `webhook` tells of their
//! ends; `routes` is the table of addresses, out of which `handlers` answer and `openapi` describes; `key` and `browsers` say
//! who may ask.

mod answers;
mod browsers;
mod handlers;
mod key;
mod live;
mod metrics;
mod openapi;
mod queue;
mod record;
mod routes;
mod running;
mod secrets;
mod server;
mod settings;
mod store;
mod stream;
mod submission;
mod waiting;
mod webhook;

pub use key::{Key, may_listen};
pub use server::{Service, ServiceError};
pub use settings::{Limits, Settings};
