//! The optimiser's state taken out and put back, bit by bit.

use brightrun_kernels::adamw::Moments;
use safetensors::Dtype;

use super::{Optimizer, OptimizerKind, Segment};
use crate::{Error, Result};

/// A part of the state. Every parameter has it: the values of its matrix, or of its experts one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatePart {
    /// How often each matrix or expert was updated.
    Updates,
    /// Mean of the gradients, or its 8-bit codes.
    FirstMoment,
    /// Mean of the squared gradients, or its 8-bit codes.
    SecondMoment,
    /// Greatest magnitudes of the blocks of 8-bit first moments.
    FirstScale,
    /// Greatest values of the blocks of 8-bit second moments.
    SecondScale,
}

/// The values of a part.
#[derive(Debug, Clone, PartialEq)]
pub enum StateValues {
    /// Counts.
    Counts(Vec<u64>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Codes of 8-bit moments.
    Codes(Vec<u8>),
}

/// One segment's values of a part, to be read.
enum View<'a> {
    Count(u64),
    Floats(&'a [f32]),
    Codes(&'a [u8]),
}

/// One segment's values of a part, to be changed.
enum Place<'a> {
    Count(&'a mut u64),
    Floats(&'a mut [f32]),
    Codes(&'a mut [u8]),
}

/// The state of an optimiser, wherever it is. Parameters are counted as [`Adapters::parameters`] lists them.
///
/// [`Adapters::parameters`]: crate::adapters::Adapters::parameters
pub trait OptimizerState {
    /// The parts of every parameter's state, the widest type first.
    fn parts(&self) -> &'static [StatePart];

    /// Type and number of the values of a part.
    fn part_layout(&self, parameter: usize, part: StatePart) -> (Dtype, usize);

    /// A copy of a part.
    fn part(&self, parameter: usize, part: StatePart) -> Result<StateValues>;

    /// Puts a part back. Values of another type or number are refused before anything is changed.
    fn set_part(&mut self, parameter: usize, part: StatePart, values: &StateValues) -> Result<()>;

    /// An error for values that are not those of a part.
    fn expect_layout(&self, parameter: usize, part: StatePart, values: &StateValues) -> Result<()> {
        let (expected, found) = (self.part_layout(parameter, part), (values.dtype(), values.len()));
        if found == expected {
            return Ok(());
        }
        let name = part.name();
        Err(Error::Invalid(format!("{name} of parameter {parameter}: found {found:?}, expected {expected:?}")))
    }
}

// === impl StatePart ===

impl StatePart {
    /// Those of an optimiser, the widest type first.
    pub(crate) fn all(kind: OptimizerKind) -> &'static [Self] {
        use StatePart::{FirstMoment, FirstScale, SecondMoment, SecondScale, Updates};
        match kind {
            OptimizerKind::AdamW => &[Updates, FirstMoment, SecondMoment],
            OptimizerKind::AdamW8bit => &[Updates, FirstScale, SecondScale, FirstMoment, SecondMoment],
        }
    }

    /// As files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Updates => "updates",
            Self::FirstMoment => "m",
            Self::SecondMoment => "v",
            Self::FirstScale => "m_scale",
            Self::SecondScale => "v_scale",
        }
    }

    pub(crate) fn dtype(self, kind: OptimizerKind) -> Dtype {
        match (self, kind) {
            (Self::Updates, _) => Dtype::U64,
            (Self::FirstMoment | Self::SecondMoment, OptimizerKind::AdamW8bit) => Dtype::U8,
            _ => Dtype::F32,
        }
    }
}

// === impl StateValues ===

impl StateValues {
    /// None yet, with room for so many.
    pub(crate) fn with_capacity(dtype: Dtype, count: usize) -> Self {
        match dtype {
            Dtype::U64 => Self::Counts(Vec::with_capacity(count)),
            Dtype::U8 => Self::Codes(Vec::with_capacity(count)),
            _ => Self::Floats(Vec::with_capacity(count)),
        }
    }

    /// Their type in a file.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Counts(_) => Dtype::U64,
            Self::Floats(_) => Dtype::F32,
            Self::Codes(_) => Dtype::U8,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Counts(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Codes(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl View ===

impl View<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Count(_) => 1,
            Self::Floats(values) => values.len(),
            Self::Codes(values) => values.len(),
        }
    }

    fn append_to(&self, values: &mut StateValues) {
        match (self, values) {
            (Self::Count(value), StateValues::Counts(values)) => values.push(*value),
            (Self::Floats(value), StateValues::Floats(values)) => values.extend_from_slice(value),
            (Self::Codes(value), StateValues::Codes(values)) => values.extend_from_slice(value),
            // The types of a part are those of its optimiser.
            _ => {}
        }
    }
}

// === impl Segment ===

impl Segment {
    fn view(&self, part: StatePart) -> View<'_> {
        match (part, &self.moments) {
            (StatePart::Updates, _) => View::Count(self.updates),
            (StatePart::FirstMoment, Moments::Full { m, .. }) => View::Floats(m),
            (StatePart::SecondMoment, Moments::Full { v, .. }) => View::Floats(v),
            (StatePart::FirstScale | StatePart::SecondScale, Moments::Full { .. }) => View::Floats(&[]),
            (StatePart::FirstMoment, Moments::Blockwise { m, .. }) => View::Codes(m),
            (StatePart::SecondMoment, Moments::Blockwise { v, .. }) => View::Codes(v),
            (StatePart::FirstScale, Moments::Blockwise { m_scale, .. }) => View::Floats(m_scale),
            (StatePart::SecondScale, Moments::Blockwise { v_scale, .. }) => View::Floats(v_scale),
        }
    }

    fn place(&mut self, part: StatePart) -> Place<'_> {
        match (part, &mut self.moments) {
            (StatePart::Updates, _) => Place::Count(&mut self.updates),
            (StatePart::FirstMoment, Moments::Full { m, .. }) => Place::Floats(m),
            (StatePart::SecondMoment, Moments::Full { v, .. }) => Place::Floats(v),
            (StatePart::FirstScale | StatePart::SecondScale, Moments::Full { .. }) => Place::Floats(&mut []),
            (StatePart::FirstMoment, Moments::Blockwise { m, .. }) => Place::Codes(m),
            (StatePart::SecondMoment, Moments::Blockwise { v, .. }) => Place::Codes(v),
            (StatePart::FirstScale, Moments::Blockwise { m_scale, .. }) => Place::Floats(m_scale),
            (StatePart::SecondScale, Moments::Blockwise { v_scale, .. }) => Place::Floats(v_scale),
        }
    }
}

// === impl Optimizer ===

impl OptimizerState for Optimizer {
    fn parts(&self) -> &'static [StatePart] {
        StatePart::all(self.options.kind)
    }

    fn part_layout(&self, parameter: usize, part: StatePart) -> (Dtype, usize) {
        let segments = self.segments.get(parameter).map_or(&[][..], Vec::as_slice);
        (part.dtype(self.options.kind), segments.iter().map(|segment| segment.view(part).len()).sum())
    }

    fn part(&self, parameter: usize, part: StatePart) -> Result<StateValues> {
        let (dtype, count) = self.part_layout(parameter, part);
        let mut values = StateValues::with_capacity(dtype, count);
        for segment in self.segments.get(parameter).into_iter().flatten() {
            segment.view(part).append_to(&mut values);
        }
        Ok(values)
    }

    fn set_part(&mut self, parameter: usize, part: StatePart, values: &StateValues) -> Result<()> {
        self.expect_layout(parameter, part, values)?;
        let mut next = 0;
        for segment in self.segments.get_mut(parameter).into_iter().flatten() {
            let range = next..next + segment.view(part).len();
            next = range.end;
            match (segment.place(part), values) {
                (Place::Count(target), StateValues::Counts(values)) => *target = values[range.start],
                (Place::Floats(target), StateValues::Floats(values)) => target.copy_from_slice(&values[range]),
                (Place::Codes(target), StateValues::Codes(values)) => target.copy_from_slice(&values[range]),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::Subject;
    use crate::step::Gradients;

    const KINDS: [OptimizerKind; 2] = [OptimizerKind::AdamW, OptimizerKind::AdamW8bit];

    /// A step in which every third parameter has no gradient and every third expert no row, another third each time.
    fn step(subject: &mut Subject, number: usize) {
        let gradient = |parameter: usize, at: usize| {
            let idle = (parameter + number).is_multiple_of(3);
            (!idle).then_some(((at * 7 + number) as f32).sin())
        };
        let gradients = Gradients::given(&subject.adapters, gradient, |expert| !(expert + number).is_multiple_of(3));
        subject.optimizer.step(&gradients, 1e-2).unwrap();
    }

    /// Counts, moments and parameters.
    fn all(subject: &Subject) -> (Vec<u64>, Vec<Moments>, Vec<Vec<f32>>) {
        let segments = subject.optimizer.segments.iter().flatten();
        let values = subject.adapters.parameters().iter().map(|parameter| parameter.values().unwrap()).collect();
        (segments.clone().map(|s| s.updates).collect(), segments.map(|s| s.moments.clone()).collect(), values)
    }

    #[test]
    fn all_parts_together_are_the_state() {
        for (kind, ratio) in KINDS.into_iter().flat_map(|kind| [(kind, 1.0), (kind, 16.0)]) {
            let new = || Subject::with_ratio(kind, ratio);
            let mut first = new();
            (0..5).for_each(|number| step(&mut first, number));
            let mut second = new();
            for (index, parameter) in first.adapters.parameters().iter().enumerate() {
                second.adapters.parameters()[index].set_values(&parameter.values().unwrap()).unwrap();
                for &part in first.optimizer.parts() {
                    let values = first.optimizer.part(index, part).unwrap();
                    assert_eq!((values.dtype(), values.len()), first.optimizer.part_layout(index, part));
                    second.optimizer.set_part(index, part, &values).unwrap();
                }
            }
            assert_eq!(all(&first), all(&second), "{kind:?} {ratio}");
            (5..8).for_each(|number| step(&mut first, number));
            assert_ne!(all(&first), all(&second), "{kind:?} {ratio}");
            (5..8).for_each(|number| step(&mut second, number));
            assert_eq!(all(&first), all(&second), "{kind:?} {ratio}");
        }
    }

    #[test]
    fn parts_of_another_size_or_type_are_refused() {
        for kind in KINDS {
            let mut subject = Subject::new(kind);
            step(&mut subject, 1);
            let before = all(&subject);
            for &part in subject.optimizer.parts() {
                let (dtype, count) = subject.optimizer.part_layout(0, part);
                for values in [
                    StateValues::with_capacity(dtype, 0),
                    StateValues::Counts(vec![9; count + 1]),
                    StateValues::Floats(vec![9.0; count + 1]),
                    StateValues::Codes(vec![9; count - 1]),
                    if dtype == Dtype::U8 {
                        StateValues::Counts(vec![9; count])
                    } else {
                        StateValues::Codes(vec![9; count])
                    },
                ] {
                    let error = subject.optimizer.set_part(0, part, &values).unwrap_err().to_string();
                    assert!(error.contains(part.name()), "{error}");
                }
            }
            assert!(subject.optimizer.set_part(99, StatePart::Updates, &StateValues::Counts(vec![1])).is_err());
            assert_eq!(all(&subject), before);
        }
    }
}
