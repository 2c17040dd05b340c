//! Random content.

use super::*;
use crate::optim::{OptimizerState, StatePart};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bits_come_back(seed in any::<u32>(), eight_bits: bool, plus: bool, metrics: Vec<u8>, losses: Vec<f64>) {
        let kind = if eight_bits { OptimizerKind::AdamW8bit } else { OptimizerKind::AdamW };
        let new = || Subject::with_ratio(kind, if plus { 16.0 } else { 1.0 });
        let (storage, mut subject) = (Simulated::new(), new());
        let step = u64::from(seed);
        subject.fill(step);
        let bits = subject.bits();
        let finite: Vec<f64> = losses.into_iter().filter(|loss| loss.is_finite()).collect();
        let captured = Captured::take(step, &subject.adapters, &subject.optimizer, &finite, &metrics).unwrap();
        let mut checkpoints = open(&storage, 1);
        save(&mut checkpoints, captured).unwrap();
        let checkpoint = found(checkpoints.latest().unwrap());
        let mut other = new();
        checkpoint.restore(&other.adapters, &mut other.optimizer).unwrap();
        prop_assert!(other.bits() == bits);
        prop_assert_eq!(&checkpoint.metrics, &metrics);
        let found: Vec<u64> = checkpoint.progress::<Vec<f64>>().unwrap().into_iter().map(f64::to_bits).collect();
        prop_assert_eq!(found, finite.into_iter().map(f64::to_bits).collect::<Vec<_>>());
        let adapter = new();
        let updates = adapter.optimizer.part(0, StatePart::Updates).unwrap();
        checkpoint.restore_adapters(&adapter.adapters).unwrap();
        prop_assert_eq!(adapter.optimizer.part(0, StatePart::Updates).unwrap(), updates);
        for (found, expected) in adapter.adapters.parameters().iter().zip(subject.adapters.parameters()) {
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(found.values().unwrap()), bits(expected.values().unwrap()));
        }
    }

    #[test]
    fn any_bytes_in_any_file_are_refused(bytes: Vec<u8>, file in 0..manifest::FILES.len() + 1) {
        let (storage, mut subject) = (Simulated::new(), Subject::new(OptimizerKind::AdamW));
        let mut checkpoints = open(&storage, 1);
        save(&mut checkpoints, subject.captured(5)).unwrap();
        let name = manifest::FILES.get(file).copied().unwrap_or(manifest::MANIFEST);
        let path = Path::new(RUN).join("step-00000005").join(name);
        prop_assume!(storage.read(&path) != bytes);
        storage.edit(&path, |content| *content = bytes);
        let found = open(&storage, 1).latest().unwrap();
        prop_assert!(found.checkpoint.is_none() && found.notes.len() == 1);
    }
}
