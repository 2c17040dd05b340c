//! What the memory of the CPU engine is made of besides what its ops ask for.

use serde::Serialize;

use super::machine::MachineKind;

const MIB: u64 = 1 << 20;

/// What a plan's memory was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// What processes really take.
    Measured,
    /// What the engine takes on an emulated card: every byte of an arena is the same there, the driver's own needs are not. No
    /// card was measured.
    Emulated,
}

/// Sizes of the CPU engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Engine {
    /// Threads that need buffers of their own.
    pub(super) threads: u64,
    /// Memory of the process before anything is loaded.
    pub(super) process: u64,
    /// Buffers of matrix products and of decoding, whatever the model.
    pub(super) workspace: u64,
    /// What the allocator holds on to, whatever it is asked for.
    heap: u64,
    /// What telling the end takes.
    pub(super) closing: u64,
}

/// Program text, runtime and thread stacks: a process of ours that does nothing has 13.5 MiB resident (Linux), one that
/// reads a small dataset a little more.
const CPU_PROCESS: u64 = 16 * MIB;
/// A block of decoded weights (`lora_linear`: 2^18 values) and the packed side of a product (at most 512 by 1,024 values).
const CPU_WORKSPACE: u64 = MIB + 2 * MIB;
/// The loss curve's pixels, as they are drawn and as they are written, and the texts beside it: more than a step takes of
/// the smallest models.
const CPU_CLOSING: u64 = 1920 * 1080 * (4 + 3) + 5 * MIB;
/// A thread's slab for packed blocks: the size of its L2 cache, here that of common servers.
const CPU_THREAD_WORKSPACE: u64 = MIB;

/// What glibc's one heap (`allocator::share_one_heap`) holds that nobody uses, holes between what is in use and the end that it
/// keeps: something always, something for every thread, one of the largest buffers, up to where buffers come from the
/// system one by one; and what reading a base in full precision leaves. A fit to whole runs of 0.15 to 2.7 GB on one and two
/// threads, where it was 15 to 120 MB and 5 to 10 more or less from run to run.
const CPU_HEAP: u64 = 4 * MIB;
const CPU_THREAD_HEAP: u64 = 4 * MIB;
const CPU_FULL_PRECISION_HEAP: u64 = 16 * MIB;
const CPU_HEAP_BUFFER: u64 = 48 * MIB;
/// Each of the two is at most so many of the largest buffers.
const CPU_MOST_BUFFERS: u64 = 2;

// === impl Basis ===

impl Basis {
    pub(super) fn of(machine: &MachineKind) -> Self {
        match machine {
            MachineKind::Cpu { .. } => Self::Measured,
            MachineKind::Gpu { .. } => Self::Emulated,
        }
    }
}

// === impl Engine ===

impl Engine {
    /// With so many threads.
    pub(super) fn cpu(threads: usize) -> Self {
        let threads = threads.max(1) as u64;
        Self {
            threads,
            process: CPU_PROCESS,
            workspace: CPU_WORKSPACE + threads * CPU_THREAD_WORKSPACE,
            heap: CPU_HEAP + threads * CPU_THREAD_HEAP,
            closing: CPU_CLOSING,
        }
    }

    /// What an allocator holds on to that nobody uses, where the largest buffer has so many bytes.
    pub(super) fn allocator(&self, largest: u64, quantised: bool) -> u64 {
        // Small runs leave small holes.
        let most = CPU_MOST_BUFFERS * largest;
        let read = if quantised { 0 } else { CPU_FULL_PRECISION_HEAP.min(most) };
        read + (self.heap + largest.min(CPU_HEAP_BUFFER)).min(most)
    }

    /// Bytes of so many activations.
    pub(super) fn values(count: u64) -> u64 {
        4 * count
    }

    /// Bytes of a token's own row: id, target, position, and its share of the batch it was read into.
    pub(super) const TOKEN: u64 = 4 + 8 + 4 + 16;
}
