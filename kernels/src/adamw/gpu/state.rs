//! The state taken out and put back, part by part and bit by bit: a run can go on here or on the CPU.

use std::ops::Range;

use super::{GpuAdamW, MOMENT_BLOCK, Moments, OP};
use crate::gpu::{Buffer, Element};
use crate::nf4::DynamicMap;
use crate::{Error, Result};

/// A part of the moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentPart {
    /// Mean of the gradients, or its 8-bit codes.
    First,
    /// Mean of the squared gradients, or its 8-bit codes.
    Second,
    /// Scales of the blocks of 8-bit first moments.
    FirstScale,
    /// Scales of the blocks of 8-bit second moments.
    SecondScale,
}

/// The values of a part, those of one tensor behind those of the other.
#[derive(Debug, Clone, PartialEq)]
pub enum MomentValues {
    /// Moments in 32 bits, or scales.
    Floats(Vec<f32>),
    /// Moments in 8 bits.
    Codes(Vec<u8>),
}

/// Where a part is, with what stands between tensors.
enum Stored<'a> {
    Floats(&'a Buffer<f32>),
    Codes(&'a Buffer<u8>, u8),
}

/// The values of some tensors, by the place that each one has in the buffer. One download.
fn take<T: Element>(from: &Buffer<T>, places: &[Range<usize>]) -> Result<Vec<T>> {
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(Vec::new()) };
    let all = from.part(first.start..last.end)?.download()?;
    Ok(places.iter().flat_map(|place| &all[place.start - first.start..place.end - first.start]).copied().collect())
}

/// Puts the values of some tensors where they belong, and `rest` between them. One upload.
fn put<T: Element>(into: &Buffer<T>, places: &[Range<usize>], values: &[T], rest: T) -> Result<()> {
    let expected: usize = places.iter().map(Range::len).sum();
    if values.len() != expected {
        return Err(Error::shape(OP, "state", expected, values.len()));
    }
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(()) };
    let mut all = vec![rest; last.end - first.start];
    let mut values = values;
    for place in places {
        let (own, others) = values.split_at(place.len());
        all[place.start - first.start..place.end - first.start].copy_from_slice(own);
        values = others;
    }
    into.part(first.start..last.end)?.upload(&all)
}

// === impl GpuAdamW ===

impl GpuAdamW {
    /// Where the values of some tensors are in a part.
    fn places(&self, part: MomentPart, tensors: &Range<usize>) -> Result<Vec<Range<usize>>> {
        if tensors.start > tensors.end || tensors.end > self.len() {
            return Err(Error::shape(OP, "tensors", 0..self.len(), tensors));
        }
        let is_scale = matches!(part, MomentPart::FirstScale | MomentPart::SecondScale);
        let place = |tensor: usize| {
            let (unit, count) = (self.first.first(tensor), self.parameters[tensor].values.len());
            match is_scale {
                true => unit..unit + count.div_ceil(MOMENT_BLOCK),
                false => unit * MOMENT_BLOCK..unit * MOMENT_BLOCK + count,
            }
        };
        Ok(tensors.clone().map(place).collect())
    }

    /// Where a part is; nothing where moments in 32 bits have no scales.
    fn stored(&self, part: MomentPart) -> Option<Stored<'_>> {
        Some(match (&self.moments, part) {
            (Moments::Full { m, .. }, MomentPart::First) => Stored::Floats(m),
            (Moments::Full { v, .. }, MomentPart::Second) => Stored::Floats(v),
            (Moments::Full { .. }, _) => return None,
            (Moments::Blockwise { m, .. }, MomentPart::First) => Stored::Codes(m, DynamicMap::signed().nearest(0.0)),
            (Moments::Blockwise { v, .. }, MomentPart::Second) => Stored::Codes(v, DynamicMap::unsigned().nearest(0.0)),
            (Moments::Blockwise { m_scale, .. }, MomentPart::FirstScale) => Stored::Floats(m_scale),
            (Moments::Blockwise { v_scale, .. }, MomentPart::SecondScale) => Stored::Floats(v_scale),
        })
    }

    /// How many values of a part some tensors have.
    pub fn moment_count(&self, part: MomentPart, tensors: Range<usize>) -> Result<usize> {
        let places = self.places(part, &tensors)?;
        Ok(if self.stored(part).is_some() { places.iter().map(Range::len).sum() } else { 0 })
    }

    /// A part of the moments of some tensors.
    pub fn moments(&self, part: MomentPart, tensors: Range<usize>) -> Result<MomentValues> {
        let places = self.places(part, &tensors)?;
        Ok(match self.stored(part) {
            Some(Stored::Floats(buffer)) => MomentValues::Floats(take(buffer, &places)?),
            Some(Stored::Codes(buffer, _)) => MomentValues::Codes(take(buffer, &places)?),
            None => MomentValues::Floats(Vec::new()),
        })
    }

    /// Puts back a part of the moments of some tensors. Values and their copies are the caller's.
    pub fn set_moments(&mut self, part: MomentPart, tensors: Range<usize>, values: &MomentValues) -> Result<()> {
        let places = self.places(part, &tensors)?;
        match (self.stored(part), values) {
            (Some(Stored::Floats(buffer)), MomentValues::Floats(values)) => put(buffer, &places, values, 0.0),
            (Some(Stored::Codes(buffer, rest)), MomentValues::Codes(values)) => put(buffer, &places, values, rest),
            (None, MomentValues::Floats(values)) if values.is_empty() => Ok(()),
            _ => Err(Error::invalid(OP, "moments of another kind")),
        }
    }

    /// How often each of some tensors was updated.
    pub fn updates(&self, tensors: Range<usize>) -> Result<Vec<u64>> {
        self.updates.part(tensors)?.download()
    }

    /// Puts back how often tensors were updated, from number `first` on.
    pub fn set_updates(&mut self, first: usize, updates: &[u64]) -> Result<()> {
        self.updates.part(first..first + updates.len())?.upload(updates)?;
        self.corrections.reach(updates.iter().copied().max().unwrap_or(0));
        Ok(())
    }
}
