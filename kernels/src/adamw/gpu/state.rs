//! The state taken out and put back, bit by bit: a run can go on here or on the CPU.

use std::ops::Range;

use super::super::Moments as HostMoments;
use super::{GpuAdamW, MOMENT_BLOCK, Moments, OP};
use crate::gpu::{Buffer, Element};
use crate::nf4::DynamicMap;
use crate::{Error, Result};

/// What the optimiser knows about a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorState {
    /// Its moments.
    pub moments: HostMoments,
    /// How often it was updated.
    pub updates: u64,
}

/// Where values of a tensor lie among those of all, in units of a moment that has `per_unit` of them each.
fn place(unit: usize, count: usize, per_unit: usize) -> Range<usize> {
    let begin = unit * per_unit;
    begin..begin + if per_unit == 1 { count.div_ceil(MOMENT_BLOCK) } else { count }
}

/// The values of some tensors, by the place that each one has in the buffer. One download.
fn take<T: Element>(from: &Buffer<T>, places: &[Range<usize>]) -> Result<Vec<Vec<T>>> {
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(Vec::new()) };
    let all = from.part(first.start..last.end)?.download()?;
    Ok(places.iter().map(|place| all[place.start - first.start..place.end - first.start].to_vec()).collect())
}

/// Puts the values of some tensors where they belong, and `rest` between them. One upload.
fn put<T: Element>(into: &Buffer<T>, places: &[Range<usize>], values: &[&[T]], rest: T) -> Result<()> {
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(()) };
    let mut all = vec![rest; last.end - first.start];
    for (place, values) in places.iter().zip(values) {
        all[place.start - first.start..place.end - first.start].copy_from_slice(values);
    }
    into.part(first.start..last.end)?.upload(&all)
}

// === impl GpuAdamW ===

impl GpuAdamW {
    fn places(&self, tensors: &Range<usize>, per_unit: usize) -> Vec<Range<usize>> {
        let place = |tensor: usize| place(self.first.first(tensor), self.parameters[tensor].values.len(), per_unit);
        tensors.clone().map(place).collect()
    }

    fn check(&self, tensors: &Range<usize>) -> Result<()> {
        if tensors.start > tensors.end || tensors.end > self.len() {
            return Err(Error::shape(OP, "tensors", 0..self.len(), tensors));
        }
        Ok(())
    }

    /// The state of some tensors, in their order.
    pub fn state(&self, tensors: Range<usize>) -> Result<Vec<TensorState>> {
        self.check(&tensors)?;
        let (values, scales) = (self.places(&tensors, MOMENT_BLOCK), self.places(&tensors, 1));
        let moments: Vec<HostMoments> = match &self.moments {
            Moments::Full { m, v } => {
                let moments = take(m, &values)?.into_iter().zip(take(v, &values)?);
                moments.map(|(m, v)| HostMoments::Full { m, v }).collect()
            }
            Moments::Blockwise { m, m_scale, v, v_scale, .. } => {
                let first = take(m, &values)?.into_iter().zip(take(m_scale, &scales)?);
                let second = take(v, &values)?.into_iter().zip(take(v_scale, &scales)?);
                let all = first.zip(second);
                all.map(|((m, m_scale), (v, v_scale))| HostMoments::Blockwise { m, m_scale, v, v_scale }).collect()
            }
        };
        let updates = self.updates.part(tensors)?.download()?;
        Ok(moments.into_iter().zip(updates).map(|(moments, updates)| TensorState { moments, updates }).collect())
    }

    /// Puts back the state of as many tensors from `first` on. Values and their copies are the caller's.
    pub fn set_state(&mut self, first: usize, states: &[TensorState]) -> Result<()> {
        let tensors = first..first + states.len();
        self.check(&tensors)?;
        for (state, parameter) in states.iter().zip(&self.parameters[tensors.clone()]) {
            state.moments.check(parameter.values.len())?;
        }
        let (values, scales) = (self.places(&tensors, MOMENT_BLOCK), self.places(&tensors, 1));
        let other = || Error::invalid(OP, "moments of another kind");
        match &self.moments {
            Moments::Full { m, v } => {
                let (mut first, mut second) = (Vec::new(), Vec::new());
                for state in states {
                    let HostMoments::Full { m, v } = &state.moments else { return Err(other()) };
                    first.push(&m[..]);
                    second.push(&v[..]);
                }
                put(m, &values, &first, 0.0)?;
                put(v, &values, &second, 0.0)?;
            }
            Moments::Blockwise { m, m_scale, v, v_scale, .. } => {
                let (mut first, mut second) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
                for state in states {
                    let HostMoments::Blockwise { m, m_scale, v, v_scale } = &state.moments else {
                        return Err(other());
                    };
                    first.0.push(&m[..]);
                    first.1.push(&m_scale[..]);
                    second.0.push(&v[..]);
                    second.1.push(&v_scale[..]);
                }
                put(m, &values, &first.0, DynamicMap::signed().nearest(0.0))?;
                put(m_scale, &scales, &first.1, 0.0)?;
                put(v, &values, &second.0, DynamicMap::unsigned().nearest(0.0))?;
                put(v_scale, &scales, &second.1, 0.0)?;
            }
        }
        let updates: Vec<u64> = states.iter().map(|state| state.updates).collect();
        self.updates.part(tensors)?.upload(&updates)?;
        self.corrections.reach(updates.into_iter().max().unwrap_or(0));
        Ok(())
    }
}
