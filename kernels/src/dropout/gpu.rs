//! Dropout on a GPU: the very mask that the CPU has.

use half::bf16;

use super::Dropout;
use crate::Result;
use crate::elements;
use crate::gpu::rows::address;
use crate::gpu::{Buffer, Kernel};

const OP: &str = "dropout";
const APPLY: Kernel = Kernel::new("dropout_apply", "const bf16*, bf16*, u64, u64, u64, u32, f32, i32");

// === impl Dropout ===

impl Dropout {
    /// `y = mask ⊙ x`, of the elements `first_index..` of the masked tensor.
    pub fn of_buffer(&self, x: &Buffer<bf16>, first_index: u64, y: &mut Buffer<bf16>) -> Result<()> {
        y.expect(OP, "result", x.len())?;
        self.launch(Some(x), first_index, y, false)
    }

    /// `y ⊙= mask`, [`Dropout::apply`] on a GPU.
    pub fn apply_to_buffer(&self, y: &mut Buffer<bf16>, first_index: u64) -> Result<()> {
        self.launch(None, first_index, y, false)
    }

    /// `y += mask ⊙ x`, as the backward pass needs it.
    pub fn add_to_buffer(&self, x: &Buffer<bf16>, first_index: u64, y: &mut Buffer<bf16>) -> Result<()> {
        y.expect(OP, "result", x.len())?;
        self.launch(Some(x), first_index, y, true)
    }

    fn launch(&self, x: Option<&Buffer<bf16>>, first_index: u64, y: &mut Buffer<bf16>, add: bool) -> Result<()> {
        let (gpu, count) = (y.gpu().clone(), y.len());
        let shape = elements::shape(OP, count, &[address(x), y.address()])?;
        let (index, key) = (first_index.into(), self.key.into());
        let (threshold, scale, add) = (self.threshold().into(), self.scale().into(), i32::from(add).into());
        gpu.launch(&APPLY, shape, [x.into(), y.into(), (count as u64).into(), index, key, threshold, scale, add])
    }
}
