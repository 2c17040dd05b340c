//! A training step on a GPU: the layers of [`crate::model`] in bf16, with their backward passes written out.
//!
//! There is no graph here. A layer's forward pass gives its output and a tape of what its backward pass needs; a step runs all
//! layers, keeps their inputs, and goes back through them one by one, each run again for its tape. So a step has the memory of
//! one layer, as on the CPU, and asks for the same memory in the same order each time. The inputs may wait in memory of the
//! host ([`Offload`]).
//!
//! What every layer computes is defined by the ops' references, and compared with the CPU's step as a whole.

mod adapters;
mod attention;
mod delta_net;
mod digest;
mod experts;
mod head;
mod inputs;
mod layer;
mod linear;
mod load;
mod mlp;
mod model;
mod optim;
mod pass;
mod step;

pub use adapters::{GpuAdapters, Trained};
pub use inputs::Offload;
pub use load::Source;
pub use model::GpuModel;
pub use optim::GpuOptimizer;
