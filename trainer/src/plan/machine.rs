//! What a run is planned for.

use serde::{Deserialize, Serialize};

/// A machine, or one of the cards it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// What computes.
    #[serde(flatten)]
    pub kind: MachineKind,
    /// How many of them the job pays for. One computes until several are supported.
    pub count: u32,
}

/// What computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MachineKind {
    /// The processor.
    Cpu {
        /// Threads that work.
        threads: usize,
        /// Memory that a run may take.
        memory_bytes: u64,
    },
    /// A card.
    Gpu {
        /// Its name, as price lists have it.
        name: String,
        /// Its memory.
        memory_bytes: u64,
        /// Dense bf16 products with `f32` sums, in 10^12 operations a second, as published.
        bf16_tflops: f64,
        /// Bytes a second, as published.
        memory_bandwidth: f64,
        /// Dollars an hour.
        usd_per_hour: f64,
    },
}

/// Share of a card's memory that a plan may fill: the rest is for what the plan does not know as long as no card has run it,
/// above all what the driver takes.
const GPU_SHARE: f64 = 0.93;
/// The same of a machine's memory, in which other programs live too.
const CPU_SHARE: f64 = 0.9;

// === impl Machine ===

impl Machine {
    /// A processor.
    pub fn cpu(threads: usize, memory_bytes: u64) -> Self {
        Self { kind: MachineKind::Cpu { threads, memory_bytes }, count: 1 }
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        match &self.kind {
            MachineKind::Cpu { threads: 1, .. } => "CPU, 1 thread".to_owned(),
            MachineKind::Cpu { threads, .. } => format!("CPU, {threads} threads"),
            MachineKind::Gpu { name, .. } => name.clone(),
        }
    }

    /// Its memory.
    pub fn memory_bytes(&self) -> u64 {
        match self.kind {
            MachineKind::Cpu { memory_bytes, .. } | MachineKind::Gpu { memory_bytes, .. } => memory_bytes,
        }
    }

    /// What a plan may fill of it.
    pub fn usable_bytes(&self) -> u64 {
        let share = match self.kind {
            MachineKind::Cpu { .. } => CPU_SHARE,
            MachineKind::Gpu { .. } => GPU_SHARE,
        };
        (self.memory_bytes() as f64 * share) as u64
    }

    /// Dollars an hour for all that the job pays for; nothing for a processor, which is there anyway.
    pub fn usd_per_hour(&self) -> Option<f64> {
        match self.kind {
            MachineKind::Cpu { .. } => None,
            MachineKind::Gpu { usd_per_hour, .. } => Some(usd_per_hour * f64::from(self.count.max(1))),
        }
    }
}
