use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

/// Targets of which about a third are missing.
fn targets(rows: usize, vocabulary: usize, seed: u64) -> Vec<Option<u32>> {
    let values = uniform(rows, seed);
    values.iter().map(|v| (*v > -0.4).then(|| ((v + 1.0) * 1e6) as u32 % vocabulary as u32)).collect()
}

struct Case {
    width: usize,
    hidden: Vec<f64>,
    weight: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    targets: Vec<Option<u32>>,
    dropout: Option<Dropout>,
}

const SCALE: f64 = 0.5;

impl Case {
    fn new(rows: usize, width: usize, vocabulary: usize, rank: usize, seed: u64) -> Self {
        Self {
            width,
            hidden: uniform(rows * width, seed),
            weight: uniform(vocabulary * width, seed + 1),
            a: uniform(rank * width, seed + 2),
            b: uniform(vocabulary * rank, seed + 3),
            targets: targets(rows, vocabulary, seed + 4),
            dropout: None,
        }
    }

    fn expected(&self) -> reference::Loss {
        let lora = (!self.a.is_empty()).then_some(self.reference_lora(&self.a, &self.b));
        reference::loss(&self.hidden, self.width, &self.weight, lora, &self.targets)
    }

    fn reference_lora<'a>(&self, a: &'a [f64], b: &'a [f64]) -> reference::Lora<'a> {
        reference::Lora { a, b, scale: SCALE, dropout: self.dropout }
    }

    fn vocabulary(&self) -> usize {
        self.weight.len() / self.width
    }

    fn rank(&self) -> usize {
        self.a.len() / self.width
    }

    fn frozen(&self) -> FrozenWeight {
        FrozenWeight::plain(narrow(&self.weight), self.vocabulary(), self.width).unwrap()
    }

    fn variable(&self, values: &[f64], columns: usize) -> Var {
        Var::from_vec(narrow(values), (values.len() / columns, columns), &Device::Cpu).unwrap()
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn loss_and_gradients_equal_the_reference(
        rows in 0usize..40, width in 1usize..40, vocabulary in 1usize..300, rank in 0usize..5, chunk in 1usize..50,
        seed: u64, drops: bool,
    ) {
        let mut case = Case::new(rows, width, vocabulary, rank, seed);
        case.dropout = drops.then(|| Dropout::keyed(0.4, &[seed]));
        let expected = case.expected();
        let (a, b) = (narrow(&case.a), narrow(&case.b));
        let (hidden, weight) = (narrow(&case.hidden), narrow(&case.weight));
        let kept = keep(&case.targets, vocabulary).unwrap();
        let lora = (rank > 0).then_some(cpu::Lora { a: &a, b: &b, rank, scale: SCALE as f32, dropout: case.dropout });
        let arguments = cpu::Arguments {
            hidden: &hidden, width, weight: &weight, vocabulary, lora, kept: &kept, chunk_rows: chunk,
        };
        let found = cpu::loss(&arguments, Wanted { hidden: true, lora: true });
        assert_close("loss", &[found.loss as f32], &[expected.loss], 1e-5);
        assert_close("d_hidden", &found.d_hidden, &expected.d_hidden, 1e-5);
        assert_close("d_a", &found.d_a, &expected.d_a, 1e-5);
        assert_close("d_b", &found.d_b, &expected.d_b, 1e-5);
        let plain = cpu::loss(&arguments, Wanted { hidden: false, lora: false });
        prop_assert_eq!(plain.loss.to_bits(), found.loss.to_bits());
        prop_assert!(plain.d_hidden.is_empty() && plain.d_a.is_empty());
    }
}

#[test]
fn the_reference_gradients_are_derivatives() {
    let mut case = Case::new(4, 3, 7, 2, 1);
    case.dropout = Some(Dropout::keyed(0.4, &[1]));
    let expected = case.expected();
    let loss = |hidden: &[f64], a: &[f64], b: &[f64]| {
        let lora = case.reference_lora(a, b);
        reference::loss(hidden, 3, &case.weight, Some(lora), &case.targets).loss
    };
    assert_derivative("hidden", &case.hidden, &expected.d_hidden, |h| loss(h, &case.a, &case.b));
    assert_derivative("a", &case.a, &expected.d_a, |a| loss(&case.hidden, a, &case.b));
    assert_derivative("b", &case.b, &expected.d_b, |b| loss(&case.hidden, &case.a, b));
}

/// A vocabulary longer than one block of partial sums, and logits far from zero.
#[test]
fn a_long_vocabulary_and_large_logits_stay_exact() {
    let mut case = Case::new(3, 8, 9001, 0, 5);
    case.hidden.iter_mut().for_each(|h| *h *= 64.0);
    case.targets = vec![Some(9000), None, Some(0)];
    let loss = fused(&case.variable(&case.hidden, 8), None, &case.frozen(), &case.targets, 2).unwrap();
    let found = loss.to_scalar::<f32>().unwrap();
    assert!((f64::from(found) / case.expected().loss - 1.0).abs() < 1e-6);
}

#[test]
fn gradients_arrive_at_variables_times_the_upstream_number() {
    let mut case = Case::new(9, 6, 31, 2, 1);
    case.dropout = Some(Dropout::keyed(0.3, &[5]));
    let expected = case.expected();
    let thrice = |values: &[f64]| values.iter().map(|v| 3.0 * v).collect::<Vec<_>>();
    let (hidden, a, b) = (case.variable(&case.hidden, 6), case.variable(&case.a, 6), case.variable(&case.b, 2));
    let lora = Lora { a: &a, b: &b, scale: SCALE as f32, dropout: case.dropout };
    let loss = fused(&hidden, Some(lora), &case.frozen(), &case.targets, 4).unwrap();
    assert_eq!(loss.dims(), [0usize; 0]);
    let gradients = loss.affine(3.0, 0.0).unwrap().backward().unwrap();
    assert_close("d_hidden", &values(gradients.get(&hidden).unwrap()), &thrice(&expected.d_hidden), 1e-5);
    assert_close("d_a", &values(gradients.get(&a).unwrap()), &thrice(&expected.d_a), 1e-5);
    assert_close("d_b", &values(gradients.get(&b).unwrap()), &thrice(&expected.d_b), 1e-5);
    // Walked again, the graph gives the same: the stash is not used up or changed.
    let again = loss.backward().unwrap();
    assert_close("again", &values(again.get(&hidden).unwrap()), &expected.d_hidden, 1e-5);
    assert_eq!(case.rank(), 2);
}

#[test]
fn the_dropout_of_a_row_does_not_depend_on_the_other_rows() {
    let mut case = Case::new(5, 16, 20, 2, 1);
    case.dropout = Some(Dropout::keyed(0.5, &[5]));
    let (hidden, a, b) = (case.variable(&case.hidden, 16), case.variable(&case.a, 16), case.variable(&case.b, 2));
    let lora = Lora { a: &a, b: &b, scale: 1.0, dropout: case.dropout };
    let loss = |targets: &[Option<u32>], chunk: usize| {
        fused(&hidden, Some(lora), &case.frozen(), targets, chunk).unwrap().to_scalar::<f32>().unwrap()
    };
    let all = [Some(1), Some(2), Some(3), Some(4), Some(5)];
    let alone: f32 = (0..5).map(|row| loss(&std::array::from_fn::<_, 5, _>(|r| all[r].filter(|_| r == row)), 3)).sum();
    assert!((loss(&all, 2) - alone).abs() < 1e-4);
    let plain = fused(&hidden, Some(Lora { dropout: None, ..lora }), &case.frozen(), &all, 2).unwrap();
    assert!((plain.to_scalar::<f32>().unwrap() - alone).abs() > 1e-2);
}

#[test]
fn only_wanted_gradients_are_given() {
    let case = Case::new(9, 6, 31, 2, 1);
    let (hidden, a, b) = (case.variable(&case.hidden, 6), case.variable(&case.a, 6), case.variable(&case.b, 2));
    let frozen_a = a.as_detached_tensor();
    let frozen_hidden = hidden.as_detached_tensor();
    let lora = Lora { a: &frozen_a, b: &b, scale: SCALE as f32, dropout: None };
    let gradients = fused(&frozen_hidden, Some(lora), &case.frozen(), &case.targets, 4).unwrap().backward().unwrap();
    assert!(gradients.get(&frozen_a).is_none() && gradients.get(&frozen_hidden).is_none());
    assert_close("d_b", &values(gradients.get(&b).unwrap()), &case.expected().d_b, 1e-5);
    let loss = fused(&frozen_hidden, None, &case.frozen(), &case.targets, 4).unwrap();
    assert!(!loss.track_op());
}

#[test]
fn a_batch_without_targets_has_no_loss_and_zero_gradient() {
    let case = Case::new(3, 4, 5, 0, 1);
    let hidden = case.variable(&case.hidden, 4);
    let loss = fused(&hidden, None, &case.frozen(), &[None, None, None], 4).unwrap();
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    assert!(values(loss.backward().unwrap().get(&hidden).unwrap()).iter().all(|&v| v == 0.0));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let case = Case::new(50, 16, 400, 0, 3);
    let hidden = case.variable(&case.hidden, 16);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let loss = fused(&hidden, None, &case.frozen(), &case.targets, 16).unwrap();
            (loss.to_scalar::<f32>().unwrap(), values(loss.backward().unwrap().get(&hidden).unwrap()))
        })
    };
    assert!(run(1) == run(4));
}

#[test]
fn a_broken_row_breaks_the_loss_instead_of_hiding() {
    let mut case = Case::new(3, 4, 5, 0, 1);
    case.hidden[5] = f64::NAN;
    let hidden = case.variable(&case.hidden, 4);
    let loss =
        |targets: &[Option<u32>]| fused(&hidden, None, &case.frozen(), targets, 2).unwrap().to_scalar::<f32>().unwrap();
    assert!(loss(&[Some(0), Some(1), Some(2)]).is_nan());
    assert!(loss(&[Some(0), None, Some(2)]).is_finite());
}

#[test]
fn bad_arguments_are_refused() {
    let case = Case::new(3, 4, 5, 2, 1);
    let (hidden, a, b) = (case.variable(&case.hidden, 4), case.variable(&case.a, 4), case.variable(&case.b, 2));
    let frozen = case.frozen();
    let targets = [Some(4), None, Some(0)];
    assert!(fused(&hidden, None, &frozen, &targets, 1).is_ok());
    let message = fused(&hidden, None, &frozen, &[None, Some(5), None], 1).unwrap_err().to_string();
    assert_eq!(message, "fused cross entropy: row 1 has target 5, outside of 5 words");
    assert!(fused(&hidden, None, &frozen, &targets[..2], 1).is_err());
    assert!(fused(&hidden, None, &frozen, &targets, 0).is_err());
    let swapped = Lora { a: &b, b: &a, scale: 1.0, dropout: None };
    assert!(fused(&hidden, Some(swapped), &frozen, &targets, 1).is_err());
    let wide = Lora { a: &a, b: &a, scale: 1.0, dropout: None };
    assert!(fused(&hidden, Some(wide), &frozen, &targets, 1).is_err());
}
