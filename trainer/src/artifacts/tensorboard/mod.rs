//! The event file that TensorBoard shows: a record per measured number, in the form TensorFlow writes.

mod message;
mod record;

use super::history::{History, Moment, perplexity};
use crate::events::Event;
use message::Message;

/// The name of the file. TensorBoard knows it by `tfevents`; there is no time in it, so that a run that goes on replaces
/// its file instead of showing everything twice.
pub const EVENTS_FILE: &str = "events.out.tfevents.brightrun";

/// What the first record says.
const FILE_VERSION: &str = "brain.Event:2";

// Fields of the message `Event`.
const WALL_TIME: u32 = 1;
const STEP: u32 = 2;
const VERSION: u32 = 3;
const SUMMARY: u32 = 5;
/// Field of `Summary`: a value.
const VALUE: u32 = 1;
// Fields of `Summary.Value`.
const TAG: u32 = 1;
const SIMPLE_VALUE: u32 = 2;

/// The whole file. Steps and evaluations have no time of their own in a history: theirs is `started_at` (seconds since
/// 1970) and the time that all up to them took.
pub fn events_file(history: &History, started_at: f64) -> Vec<u8> {
    let mut version = Message::default();
    version.double(WALL_TIME, started_at);
    version.text(VERSION, FILE_VERSION);
    let mut file = record::framed(&version.into_bytes());
    for Moment { seconds, event } in history.moments() {
        let (step, values) = scalars(event);
        if values.is_empty() {
            continue;
        }
        let mut summary = Message::default();
        for (tag, number) in values {
            let mut value = Message::default();
            value.text(TAG, tag);
            value.float(SIMPLE_VALUE, number as f32);
            summary.message(VALUE, value);
        }
        let mut message = Message::default();
        message.double(WALL_TIME, started_at + seconds);
        message.whole(STEP, step);
        message.message(SUMMARY, summary);
        file.extend(record::framed(&message.into_bytes()));
    }
    file
}

/// The numbers of a measurement that TensorBoard shows; it shows NaN too, where someone should see it.
fn scalars(event: &Event) -> (u64, Vec<(&'static str, f64)>) {
    match event {
        Event::Step(metrics) => {
            let mut values = vec![
                ("train/loss", metrics.loss),
                ("train/loss_smoothed", metrics.smoothed_loss),
                ("train/learning_rate", metrics.learning_rate),
                ("train/grad_norm", metrics.gradient_norm),
            ];
            // A clock that stands still measures no speed.
            if metrics.tokens_per_second > 0.0 {
                values.push(("train/tokens_per_second", metrics.tokens_per_second));
            }
            (metrics.step, values)
        }
        Event::Evaluation { step, loss, .. } => {
            let mut values = vec![("eval/loss", *loss)];
            values.extend(perplexity(*loss).map(|number| ("eval/perplexity", number)));
            (*step, values)
        }
        _ => (0, Vec::new()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{evaluation, sample, step};
    use super::*;

    /// A number in an event file: seconds since 1970, step, tag, value.
    pub(in crate::artifacts) type Scalar = (f64, u64, String, f32);

    /// Reads an event file with its own, plain knowledge of the format.
    pub(in crate::artifacts) fn read(file: &[u8]) -> Vec<Scalar> {
        let messages = record::tests::read(file);
        let version = message::tests::fields(&messages[0]);
        assert_eq!(version[1], (3, b"brain.Event:2".to_vec()));
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let mut scalars = Vec::new();
        for message in &messages[1..] {
            let fields = message::tests::fields(message);
            assert_eq!(fields.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 2, 5]);
            let time = f64::from_bits(number(&fields[0].1));
            for (field, value) in message::tests::fields(&fields[2].1) {
                let value = message::tests::fields(&value);
                assert_eq!((field, value[0].0, value[1].0), (1, 1, 2));
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                let float = f32::from_le_bytes(value[1].1[..].try_into().unwrap());
                scalars.push((time, number(&fields[1].1), tag, float));
            }
        }
        scalars
    }

    #[test]
    fn every_number_is_under_its_tag_at_its_step_and_time() {
        let mut history = History::default();
        history.record(&step(1, 3.0));
        history.record(&step(300, 2.0));
        history.record(&evaluation(300, 2.5));
        let scalars = read(&events_file(&history, 1_700_000_000.0));
        let found: Vec<_> =
            scalars.iter().map(|(time, step, tag, value)| (*time, *step, tag.as_str(), *value)).collect();
        // A step of the tests takes half a second, an evaluation a quarter of one.
        let wanted = [
            (1_700_000_000.5, 1, "train/loss", 3.0),
            (1_700_000_000.5, 1, "train/loss_smoothed", 3.0),
            (1_700_000_000.5, 1, "train/learning_rate", 1e-4),
            (1_700_000_000.5, 1, "train/grad_norm", 0.5),
            (1_700_000_000.5, 1, "train/tokens_per_second", 200.0),
            (1_700_000_001.0, 300, "train/loss", 2.0),
            (1_700_000_001.0, 300, "train/loss_smoothed", 2.0),
            (1_700_000_001.0, 300, "train/learning_rate", 1e-4),
            (1_700_000_001.0, 300, "train/grad_norm", 0.5),
            (1_700_000_001.0, 300, "train/tokens_per_second", 200.0),
            (1_700_000_001.25, 300, "eval/loss", 2.5),
            (1_700_000_001.25, 300, "eval/perplexity", 2.5f32.exp()),
        ];
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!((found.0, found.1, found.2), (wanted.0, wanted.1, wanted.2));
            assert!((found.3 - wanted.3).abs() <= 1e-6 * wanted.3, "{found:?}");
        }
    }

    #[test]
    fn looks_at_the_layers_are_not_in_it() {
        let steps = sample(20);
        let numbers = read(&events_file(&steps, 0.0)).len();
        assert_eq!(numbers, 20 * 5 + steps.evaluations().count() * 2);
    }
}
