//! Router, routing and routed experts on a GPU.
//!
//! Rows (a token's choices, sorted by expert) never exist as copies of tokens: products gather them where they load them, and
//! the sums of tokens go through the inverse list, in the order of the choices.

mod backward;
mod experts;
mod forward;
mod lora;
mod routing;
mod update;
mod weights;

pub use backward::Gradients;
pub use experts::GpuExperts;
pub use forward::{ExpertsCall, Kept};
pub use lora::GpuExpertLora;
pub use routing::{Balance, GpuRouting, LoadSums};

use crate::gpu::{Argument, Buffer, Element};

/// The four kernels of a product: for bf16 and for NF4, each for large and small tiles. Between the given arguments stand those of
/// the weights and, behind the second ones, those of the schedule.
macro_rules! kernels {
    ($name:ident = $plain:literal, $nf4:literal: $first:literal, $second:literal, $last:literal) => {
        const $name: [crate::gpu::Kernel; 4] = {
            const ARGUMENTS: &str = concat!(
                $first,
                "const bf16*, i32, const u8*, const f32*, const u8*, const f32*, const f32*, const f32*, ",
                $second,
                "const u32*, const u32*, const u32*, const u32*, i32, i32, i32, i32, i32, ",
                $last
            );
            [
                crate::gpu::Kernel::new(concat!($plain, "_large"), ARGUMENTS),
                crate::gpu::Kernel::new(concat!($plain, "_small"), ARGUMENTS),
                crate::gpu::Kernel::new(concat!($nf4, "_large"), ARGUMENTS),
                crate::gpu::Kernel::new(concat!($nf4, "_small"), ARGUMENTS),
            ]
        };
    };
}

use kernels;

/// What errors name.
const OP: &str = "moe on a GPU";

/// An argument of the kernels: memory that has values, or none.
fn some<T: Element>(buffer: Option<&Buffer<T>>) -> Argument {
    buffer.filter(|buffer| !buffer.is_empty()).into()
}
