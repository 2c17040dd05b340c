//! LoRA of the routed experts of a layer.

use brightrun_kernels::moe::GpuExpertLora;

use super::adapters::GpuAdapters;
use crate::Result;

/// The copies that products read, and where they come from.
pub(super) struct ExpertAdapter {
    pub(super) lora: GpuExpertLora,
    /// The number of the parameter.
    pub(super) parameter: usize,
    /// Names the module in dropout keys.
    pub(super) id: u64,
}

impl ExpertAdapter {
    /// Takes the parameter's values as they are now.
    pub(super) fn refresh(&mut self, adapters: &GpuAdapters) -> Result<()> {
        Ok(self.lora.refresh(&adapters.get(self.parameter)?.values)?)
    }
}
