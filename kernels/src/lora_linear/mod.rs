//! A frozen linear layer (plain or NF4) with an optional low-rank update:
//! `y = x Wᵀ + bias + scale · drop(x) Aᵀ Bᵀ`, `W [out, in]` frozen, `A [rank, in]`, `B [out, rank]`.
//!
//! The weight never gets a gradient: neither computed nor stored.

pub(crate) mod cpu;
pub mod gpu;
pub mod reference;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Shape, Tensor};

use crate::dropout::Dropout;
use crate::op::{expect_f32, slice, tensor, wants_gradient, with_slices};
use crate::{Error, FrozenWeight, Result};

const NAME: &str = "lora linear";

/// The part that never learns.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    /// `[out, in]`.
    pub weight: FrozenWeight,
    /// `[out]`.
    pub bias: Option<Arc<[f32]>>,
}

/// How the low-rank update enters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lora {
    /// Rows of `A`.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f32,
    /// Dropout on the update's input.
    pub dropout: Option<Dropout>,
}

struct Frozen(FrozenLinear);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, _) = layout.shape().dims2()?;
        let x = slice(NAME, x, layout)?;
        let (y, _) = cpu::forward(x, rows, &self.0.weight, self.0.bias.as_deref(), None);
        Ok((CpuStorage::F32(y), (rows, self.0.weight.rows()).into()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let rows = x.dim(0)?;
        let dx = with_slices([grad], |[dy]| cpu::backward_input(dy, rows, &self.0.weight))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct Adapted {
    linear: FrozenLinear,
    lora: Lora,
    save: bool,
    /// `drop(x) Aᵀ`.
    down: Mutex<Vec<f32>>,
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, _) = x_layout.shape().dims2()?;
        let (x, a, b) = (slice(NAME, x, x_layout)?, slice(NAME, a, a_layout)?, slice(NAME, b, b_layout)?);
        let FrozenLinear { weight, bias } = &self.linear;
        let (y, down) = cpu::forward(x, rows, weight, bias.as_deref(), Some((&self.lora, a, b)));
        if self.save {
            *self.down.lock().unwrap_or_else(PoisonError::into_inner) = down;
        }
        Ok((CpuStorage::F32(y), (rows, weight.rows()).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = x.dim(0)?;
        let (dx, da, db) = with_slices([x, a, b, grad], |[x_values, a, b, dy]| {
            let mut dx = wants_gradient(x).then(|| cpu::backward_input(dy, rows, &self.linear.weight));
            let (da, db) = cpu::backward_lora(&self.lora, x_values, a, b, &down, dy, rows, dx.as_deref_mut());
            (dx, da, db)
        })?;
        let dx = dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        Ok((dx, Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}

fn check_input(x: &Tensor, linear: &FrozenLinear) -> Result<()> {
    expect_f32(NAME, "x", x)?;
    let (inputs, outputs) = (linear.weight.columns(), linear.weight.rows());
    if x.rank() != 2 || x.dim(1)? != inputs {
        return Err(Error::shape(NAME, "x", ("rows", inputs), x.dims()));
    }
    match &linear.bias {
        Some(bias) if bias.len() != outputs => Err(Error::shape(NAME, "bias", outputs, bias.len())),
        _ => Ok(()),
    }
}

/// `x Wᵀ + bias`.
pub fn frozen_linear(x: &Tensor, linear: &FrozenLinear) -> Result<Tensor> {
    check_input(x, linear)?;
    Ok(x.apply_op1_arc(Arc::new(Box::new(Frozen(linear.clone()))))?)
}

/// `x Wᵀ + bias + scale · drop(x) Aᵀ Bᵀ`.
pub fn lora_linear(x: &Tensor, a: &Tensor, b: &Tensor, linear: &FrozenLinear, lora: Lora) -> Result<Tensor> {
    check_input(x, linear)?;
    let shapes = [("A", a, [lora.rank, linear.weight.columns()]), ("B", b, [linear.weight.rows(), lora.rank])];
    for (what, matrix, expected) in shapes {
        expect_f32(NAME, what, matrix)?;
        if matrix.dims() != expected || lora.rank == 0 {
            return Err(Error::shape(NAME, what, expected, matrix.dims()));
        }
    }
    let save = [x, a, b].into_iter().any(wants_gradient);
    let op = Adapted { linear: linear.clone(), lora, save, down: Mutex::default() };
    Ok(x.apply_op3_arc(a, b, Arc::new(Box::new(op)))?)
}

#[cfg(test)]
mod tests;
