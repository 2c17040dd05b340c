//! `metrics.jsonl`: one line per optimiser step and per evaluation.

use std::path::Path;

use super::atomic;
use crate::{Error, Result, events::Event};

/// Collects the lines while a run goes, and writes them at its end.
#[derive(Debug, Default)]
pub struct Metrics {
    lines: String,
}

impl Metrics {
    /// Takes note of steps and evaluations; other events are no measurements.
    pub fn record(&mut self, event: &Event) -> Result<()> {
        if matches!(event, Event::Step(_) | Event::Evaluation { .. }) {
            let line = serde_json::to_string(event)
                .map_err(|error| Error::Invalid(format!("a metrics line cannot be written: {error}")))?;
            self.lines.extend([line.as_str(), "\n"]);
        }
        Ok(())
    }

    /// Writes all lines.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write(path, self.lines.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Stage;

    #[test]
    fn measurements_become_lines_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::default();
        metrics.record(&Event::Stage { stage: Stage::Training }).unwrap();
        metrics.record(&Event::Evaluation { step: 5, loss: 1.5, perplexity: 4.5, best: true, seconds: 0.0 }).unwrap();
        metrics.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"event\":\"evaluation\",\"step\":5,\"loss\":1.5,\"perplexity\":4.5,\"best\":true,\"seconds\":0.0}\n"
        );
    }
}
