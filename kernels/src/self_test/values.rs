//! Arguments of the comparisons, and results taken out of tensors.

use candle_core::{Device, Shape, Tensor, Var};

use crate::Result;
use crate::dropout::{SPLITMIX_STEP, splitmix};
use crate::seed::seed;

/// Reproducible values in -1..1.
pub(crate) struct Random {
    state: u64,
}

// === impl Random ===

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next values: 24 bits each, so that a value is the same in `f32`.
    pub(crate) fn values(&mut self, count: usize) -> Vec<f64> {
        let mut next = || {
            let bits = splitmix(self.state);
            self.state = self.state.wrapping_add(SPLITMIX_STEP);
            (bits >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// The next values, stretched to `-limit..limit` and rounded to `f32`.
    pub(super) fn within(&mut self, limit: f64, count: usize) -> Vec<f64> {
        self.values(count).iter().map(|value| f64::from((limit * value) as f32)).collect()
    }

    /// A key for a dropout.
    pub(crate) fn key(&mut self) -> u64 {
        self.state = splitmix(self.state);
        self.state
    }
}

/// As `f32`.
pub(crate) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// As `f64`.
pub(crate) fn wide<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// A variable of a graph.
pub(crate) fn variable(values: &[f64], shape: impl Into<Shape>) -> Result<Var> {
    Ok(Var::from_vec(narrow(values), shape, &Device::Cpu)?)
}

/// What a tensor holds.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(wide(&tensor.flatten_all()?.to_vec1::<f32>()?))
}

/// The variables' gradients for the output gradient `upstream`; empty for a variable that none arrived at, which no
/// comparison takes for the expected one.
pub(crate) fn gradients<const N: usize>(output: &Tensor, upstream: &[f64], of: [&Var; N]) -> Result<[Vec<f64>; N]> {
    let upstream = Tensor::from_vec(narrow(upstream), output.shape(), &Device::Cpu)?;
    let gradients = seed(output, &upstream)?.backward()?;
    let mut all = [const { Vec::new() }; N];
    for (found, variable) in all.iter_mut().zip(of) {
        if let Some(gradient) = gradients.get(variable) {
            *found = values(gradient)?;
        }
    }
    Ok(all)
}
