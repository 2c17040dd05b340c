//! What every candle op of this crate shares: reading a contiguous `f32` argument, and knowing whether a gradient is
//! wanted at all.

use std::cell::Cell;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Storage, Tensor};

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

/// Runs `f` on the values of `f32` CPU tensors; only those that are not contiguous are copied.
pub fn with_slices<const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> T,
) -> candle_core::Result<T> {
    let owned = tensors.iter().map(|t| t.contiguous()).collect::<candle_core::Result<Vec<_>>>()?;
    let guards: Vec<_> = owned.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (target, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *target = match &**storage {
            Storage::Cpu(cpu) => slice("with_slices", cpu, layout)?,
            _ => return Err(candle_core::Error::Msg("this op needs CPU tensors".into())),
        };
    }
    Ok(f(slices))
}

/// [`with_slices`] for one tensor.
pub fn with_slice<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> candle_core::Result<T> {
    with_slices([tensor], |[values]| f(values))
}

/// Changes the values of a contiguous `f32` CPU tensor where they are.
pub fn update_in_place<T>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<()> {
    struct Update<F>(Cell<Option<F>>);
    impl<T, F: FnOnce(&mut [f32]) -> Result<T>> InplaceOp1 for Update<F> {
        fn name(&self) -> &'static str {
            "update-in-place"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let CpuStorage::F32(values) = storage else {
                return Err(Error::shape(self.name(), "tensor", DType::F32, storage.dtype()).into());
            };
            let Some((start, end)) = layout.contiguous_offsets() else {
                return Err(Error::invalid(self.name(), "needs a contiguous tensor").into());
            };
            if let Some(change) = self.0.take() {
                change(&mut values[start..end])?;
            }
            Ok(())
        }
    }
    Ok(tensor.inplace_op1(&Update(Cell::new(Some(change))))?)
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
