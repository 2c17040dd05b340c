//! Router, routing and routed experts on a GPU.
//!
//! Rows (a token's choices, sorted by expert) never exist as copies of tokens: products gather them where they load them, and
//! the sums of tokens go through the inverse list, in the order of the choices.

mod backward;
mod experts;
mod forward;
mod lora;
mod routing;
#[cfg(all(test, feature = "emulation"))]
mod tests;
mod update;
mod usage;
mod ways;
mod weights;

pub use backward::Gradients;
pub use experts::GpuExperts;
pub use forward::{ExpertsCall, Kept};
pub use lora::GpuExpertLora;
pub use routing::{Balance, GpuRouting, LoadSums};
pub use usage::{ExpertUse, LayerUse};
pub use ways::Cores;

use crate::gpu::{Argument, Buffer, Element, Kernel};

/// The kernels of a product, by what computes them: for bf16 and for NF4, each for large and small tiles.
struct Kernels {
    warp: [Kernel; 4],
    /// None where a part of the product is dropped: then sums change in the middle of it, which `wgmma` would have to wait for.
    warpgroup: Option<[Kernel; 4]>,
}

/// The kernels of a product, by the names that they have behind `moe_`. Between the given arguments stand those of the weights
/// and, behind the second ones, those of the schedule.
macro_rules! kernels {
    ($constant:ident = $name:literal: $first:literal, $second:literal, $last:literal) => {
        const $constant: Kernels = Kernels {
            warp: kernels!(@ concat!("moe_", $name), concat!("moe_nf4_", $name), $first, $second, $last),
            warpgroup: Some(
                kernels!(@ concat!("moe_warpgroup_", $name), concat!("moe_warpgroup_nf4_", $name), $first, $second, $last)
            ),
        };
    };
    ($constant:ident = $name:literal, dropped $dropped:literal: $first:literal, $second:literal, $last:literal) => {
        const $constant: Kernels = Kernels {
            warp: kernels!(@ concat!("moe_", $name), concat!("moe_nf4_", $dropped), $first, $second, $last),
            warpgroup: None,
        };
    };
    (@ $plain:expr, $nf4:expr, $first:literal, $second:literal, $last:literal) => {{
        const ARGUMENTS: &str = concat!(
            $first,
            "const bf16*, i32, const u8*, const f32*, const u8*, const f32*, const f32*, const f32*, ",
            $second,
            "const u32*, const u32*, const u32*, const u32*, i32, i32, i32, i32, i32, ",
            $last
        );
        [
            Kernel::new(concat!($plain, "_large"), ARGUMENTS),
            Kernel::new(concat!($plain, "_small"), ARGUMENTS),
            Kernel::new(concat!($nf4, "_large"), ARGUMENTS),
            Kernel::new(concat!($nf4, "_small"), ARGUMENTS),
        ]
    }};
}

use kernels;

/// What errors name.
const OP: &str = "moe on a GPU";

/// An argument of the kernels: memory that has values, or none.
fn some<T: Element>(buffer: Option<&Buffer<T>>) -> Argument {
    buffer.filter(|buffer| !buffer.is_empty()).into()
}
