//! What every candle op of this crate shares: reading a contiguous `f32` argument, and knowing whether a gradient is
//! wanted at all.

use candle_core::{CpuStorage, DType, Device, Layout, Shape, Storage, Tensor};

use crate::{Error, Result};

/// The values of a contiguous `f32` argument of a CPU op.
pub(crate) fn slice<'a>(op: &'static str, storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => {
            Err(Error::invalid(op, format!("needs a contiguous argument, found strides {:?}", layout.stride())).into())
        }
    }
}

/// Runs `f` on the values of a contiguous `f32` CPU tensor, without copying them.
pub fn with_slice<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> candle_core::Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(slice("with_slice", cpu, layout)?)),
        _ => Err(candle_core::Error::Msg("with_slice needs a CPU tensor".into())),
    }
}

/// A CPU tensor from values.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// Whether the graph wants this argument's gradient.
pub(crate) fn wants_gradient(tensor: &Tensor) -> bool {
    tensor.is_variable() || tensor.track_op()
}

/// Arguments are always `f32` on the CPU: anything else is a caller's mistake, named here.
pub(crate) fn expect_f32(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() != DType::F32 {
        return Err(Error::shape(op, what, DType::F32, tensor.dtype()));
    }
    Ok(())
}
