//! Starting a backward pass from the middle: candle's `backward` takes no upstream gradient, so an op that is zero
//! forward and the given gradient backward carries it in.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use crate::{Error, Result};

const NAME: &str = "seed";

struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, _grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// A scalar zero whose `backward` gives `output` the gradient `gradient`, as if a loss had been computed from it.
/// Meant to be summed with other scalars, not to be scaled.
pub fn seed(output: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if output.dims() != gradient.dims() {
        return Err(Error::shape(NAME, "gradient", output.dims(), gradient.dims()));
    }
    Ok(output.apply_op1_arc(Arc::new(Box::new(Seed(gradient.detach()))))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_gradient_arrives_unchanged() {
        let x = Var::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
        let y = (x.as_tensor() * 3.0).unwrap();
        let gradient = Tensor::new(&[10.0f32, 20.0], &Device::Cpu).unwrap();
        let grads = seed(&y, &gradient).unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), [30.0, 60.0]);
        assert!(seed(&y, &y.unsqueeze(0).unwrap()).is_err());
    }
}
