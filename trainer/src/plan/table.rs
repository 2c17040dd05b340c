//! The plan for people.

use std::fmt::{self, Display, Formatter};

use super::{Basis, Plan};
use crate::step::Recompute;

/// Bytes as people read them: thousands, as the sizes of cards and files are given.
pub fn gigabytes(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e11 => format!("{:.0} GB", bytes / 1e9),
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes if bytes >= 1e6 => format!("{:.0} MB", bytes / 1e6),
        bytes => format!("{:.0} kB", bytes / 1e3),
    }
}

/// Seconds as people read them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..360_000 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} days", whole / 86_400),
    }
}

/// A count with at most four digits.
pub(super) fn count(value: u64) -> String {
    match value as f64 {
        value if value >= 1e9 => format!("{:.2} B", value / 1e9),
        value if value >= 1e6 => format!("{:.1} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// Width of a row's name.
const COLUMN: usize = 16;

fn row(out: &mut Formatter<'_>, name: &str, text: impl Display) -> fmt::Result {
    writeln!(out, "  {name:<COLUMN$}{text}")
}

impl Plan {
    fn write_parameters(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let counts = &self.parameters;
        writeln!(
            out,
            "Parameters  {} frozen, {} trained in {} linears; adapter file {}",
            count(counts.base),
            count(counts.trainable),
            count(counts.adapted_linears),
            gigabytes(counts.adapter_file_bytes)
        )?;
        for part in &counts.by_kind {
            let trained =
                if part.trainable == 0 { String::new() } else { format!(", {} trained", count(part.trainable)) };
            let text = format!("{:>9}  {:>8}{trained}", count(part.base), gigabytes(part.base_bytes));
            row(out, part.kind.name(), text)?;
        }
        Ok(())
    }

    fn write_memory(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let memory = &self.memory;
        let basis = match self.basis {
            Basis::Measured => "as the CPU engine was measured",
            Basis::Emulated => "as an emulated card takes it",
        };
        writeln!(out, "Memory      {} at the peak ({}; {basis})", gigabytes(memory.peak), memory.peak_at)?;
        for (name, bytes) in [
            ("base", memory.base),
            ("adapters", memory.adapters),
            ("gradients", memory.gradients),
            ("optimiser", memory.optimizer),
            ("layer inputs", memory.kept_inputs),
            ("activations", memory.activations),
            ("workspace", memory.workspace),
            ("tokens", memory.tokens),
            ("allocator", memory.allocator),
            ("process", memory.process),
        ] {
            row(out, name, format!("{:>8}", gigabytes(bytes)))?;
        }
        for layer in &memory.layers {
            let text = format!(
                "{} like it: forward {}, graph {}, backward {}",
                layer.count,
                gigabytes(layer.forward),
                gigabytes(layer.graph),
                gigabytes(layer.backward)
            );
            writeln!(out, "  {}; {text}", layer.kind)?;
        }
        row(out, "head and loss", format!("{:>8}", gigabytes(memory.head)))?;
        row(out, "while loading", format!("{:>8}", gigabytes(memory.loading)))?;
        row(out, "at the end", format!("{:>8}", gigabytes(memory.closing)))
    }

    fn write_work(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let (work, time) = (&self.work, &self.time);
        let assumed = if work.assumed { " (lengths are assumed: no dataset was read)" } else { "" };
        writeln!(
            out,
            "Work        {} steps over {} examples, {} tokens in {} micro-batches{assumed}",
            work.steps,
            work.examples,
            count(work.tokens),
            work.micro_batches
        )?;
        let operations = &self.operations;
        let per_token = format!(
            "{:.3} GFLOP a token: forward {:.3}, backward {:.3}, recompute {:.3}",
            operations.total / 1e9,
            operations.forward / 1e9,
            operations.backward / 1e9,
            operations.recompute / 1e9
        );
        row(out, "operations", per_token)?;
        let usd = time.usd.map(|usd| format!(", ${usd:.2}")).unwrap_or_default();
        writeln!(
            out,
            "Time        {}{usd}: loading {}, {} a step ({:.0} tokens/s), evaluations {}",
            duration(time.total_seconds),
            duration(time.loading_seconds),
            duration(time.step_seconds),
            time.tokens_per_second,
            duration(time.evaluation_seconds)
        )
    }
}

impl Display for Plan {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let verdict = if self.fits { "fits" } else { "does not fit" };
        writeln!(
            out,
            "{}: {verdict}, {} of {} usable ({} installed)",
            self.machine.name(),
            gigabytes(self.choice.peak_bytes),
            gigabytes(self.usable_bytes),
            gigabytes(self.machine.memory_bytes())
        )?;
        self.write_parameters(out)?;
        let kept = match self.choice.recompute {
            Recompute::Layers => "layers are computed again on the way back",
            Recompute::None => "all graphs are kept",
        };
        writeln!(out, "Way         micro-batches of up to {} tokens; {kept}", self.choice.micro_batch_tokens)?;
        self.write_memory(out)?;
        self.write_work(out)
    }
}
