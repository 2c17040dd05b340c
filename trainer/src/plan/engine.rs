//! What an engine's memory is made of: the CPU engine as it is, and a GPU engine as it is designed. The numbers of the GPU
//! follow from the design and from what is published; none of them is measured.

use brightrun_kernels::cross_entropy::CHUNK_ROWS;
use serde::Serialize;

use super::machine::{Machine, MachineKind};

const MIB: u64 = 1 << 20;

/// Whether an engine's numbers were compared with a running one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The engine exists, and tests hold its prediction against what it takes.
    Measured,
    /// The engine is a design; its numbers are computed.
    Computed,
}

/// Sizes that differ between engines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Engine {
    pub(super) basis: Basis,
    /// Bytes of an activation.
    pub(super) activation: u64,
    /// Bytes of a base weight that is not quantised.
    pub(super) plain: u64,
    /// Zeros that a sum of gradients begins with take memory.
    pub(super) zeros_take_memory: bool,
    /// Threads that need buffers of their own.
    pub(super) threads: u64,
    /// Rows of logits that exist at the same time.
    pub(super) logit_rows: u64,
    /// An output projection in NF4 is decoded whole.
    pub(super) decodes_head: bool,
    /// Memory of the process or the device context before anything is loaded.
    pub(super) process: u64,
    /// Buffers of matrix products and of decoding, whatever the model.
    pub(super) workspace: u64,
    /// What an allocator holds on to, whatever it is asked for.
    pub(super) heap: u64,
    /// And where the base is kept in full precision.
    full_precision_heap: u64,
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

/// What a CUDA context with its modules takes on a data-centre card: 400 to 550 MiB are commonly reported.
const GPU_CONTEXT: u64 = 550 * MIB;
/// The workspace cuBLAS asks for on Hopper is 32 MiB; as much again for decoded blocks, and for what a caching allocator
/// rounds up.
const GPU_WORKSPACE: u64 = 96 * MIB;
/// Rows of logits on a GPU: enough for full tiles of the product; for the 151,936 words of Qwen 622 MB in `f32`.
const GPU_LOGIT_ROWS: u64 = 1024;

// === impl Engine ===

impl Engine {
    pub(super) fn of(machine: &Machine) -> Self {
        match &machine.kind {
            MachineKind::Cpu { threads, .. } => Self::cpu((*threads).max(1) as u64),
            MachineKind::Gpu { .. } => Self::gpu(),
        }
    }

    fn cpu(threads: u64) -> Self {
        Self {
            basis: Basis::Measured,
            activation: 4,
            plain: 4,
            zeros_take_memory: false,
            threads,
            logit_rows: CHUNK_ROWS as u64,
            decodes_head: true,
            process: CPU_PROCESS,
            workspace: CPU_WORKSPACE + threads * CPU_THREAD_WORKSPACE,
            heap: CPU_HEAP + threads * CPU_THREAD_HEAP,
            full_precision_heap: CPU_FULL_PRECISION_HEAP,
            closing: CPU_CLOSING,
        }
    }

    fn gpu() -> Self {
        Self {
            basis: Basis::Computed,
            activation: 2,
            plain: 2,
            zeros_take_memory: true,
            // Blocks of threads keep their buffers in shared memory.
            threads: 0,
            logit_rows: GPU_LOGIT_ROWS,
            decodes_head: false,
            process: GPU_CONTEXT,
            workspace: GPU_WORKSPACE,
            // What an allocator loses is in the share of a card that no plan fills.
            heap: 0,
            full_precision_heap: 0,
            closing: 0,
        }
    }

    /// What an allocator holds on to that nobody uses, where the largest buffer has so many bytes.
    pub(super) fn allocator(&self, largest: u64, quantised: bool) -> u64 {
        if self.heap == 0 {
            return 0;
        }
        // Small runs leave small holes.
        let most = CPU_MOST_BUFFERS * largest;
        let read = if quantised { 0 } else { self.full_precision_heap.min(most) };
        read + (self.heap + largest.min(CPU_HEAP_BUFFER)).min(most)
    }

    /// Bytes of so many activations.
    pub(super) fn values(&self, count: u64) -> u64 {
        count * self.activation
    }

    /// Bytes of a token's own row: id, target, position, and its share of the batch it was read into.
    pub(super) const TOKEN: u64 = 4 + 8 + 4 + 16;
}
