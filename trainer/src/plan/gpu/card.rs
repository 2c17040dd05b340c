//! What the host sides of ops ask a card before they size their workspaces.

use crate::plan::MachineKind;

/// A card, as far as memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) multiprocessors: u64,
    /// The first number of what its kernels may use.
    pub(super) generation: u32,
    /// Shared memory of a multiprocessor in KiB, of which a block may have one less.
    pub(super) shared: u64,
}

const fn card(multiprocessors: u64, generation: u32, shared: u64) -> Card {
    Card { multiprocessors, generation, shared }
}

/// Parts of names, the longer ones first where one is in another. Numbers are those of the vendor's data sheets.
const KNOWN: &[(&str, Card)] = &[
    ("emulated", card(3, 8, 100)),
    ("A4000", card(48, 8, 100)),
    ("A5000", card(64, 8, 100)),
    ("A6000", card(84, 8, 100)),
    ("A100", card(108, 8, 164)),
    ("A40", card(84, 8, 100)),
    ("3090", card(82, 8, 100)),
    ("4090", card(128, 8, 100)),
    ("L40", card(142, 8, 100)),
    ("6000 Ada", card(142, 8, 100)),
    ("L4", card(58, 8, 100)),
    ("PRO 6000", card(188, 12, 100)),
    ("B200", card(148, 10, 228)),
];
/// H100 and H200, and what others are taken for.
const HOPPER: Card = card(132, 9, 228);

// === impl Card ===

impl Card {
    pub(super) fn of(kind: &MachineKind) -> Self {
        match kind {
            MachineKind::Gpu { name, .. } => {
                KNOWN.iter().find(|(part, _)| name.contains(part)).map_or(HOPPER, |(_, card)| *card)
            }
            MachineKind::Cpu { .. } => HOPPER,
        }
    }
}
