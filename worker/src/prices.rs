//! The cards a job may run on, with what they cost.
//!
//! Memory is what the driver reports with the settings a card is shipped with. Rates are the makers': dense bf16 products
//! with `f32` sums, and memory bandwidth. Prices are those of RunPod's serverless workers by the second; where one price
//! covers several cards, each has a row.

use brightrun_trainer::plan::{Machine, MachineKind};

/// Where the prices come from.
pub(crate) const SOURCE: &str = "RunPod documentation, serverless GPU pricing";
/// As they were on this day.
pub(crate) const DATE: &str = "2026-06-08";

const MIB: u64 = 1 << 20;

struct Card {
    /// The short name, as jobs and price lists have it.
    name: &'static str,
    /// Memory in MiB.
    memory: u64,
    /// 10^12 operations a second.
    tflops: f64,
    /// 10^9 bytes a second.
    bandwidth: f64,
    /// Dollars a second.
    price: f64,
}

const fn card(name: &'static str, memory: u64, tflops: f64, bandwidth: f64, price: f64) -> Card {
    Card { name, memory, tflops, bandwidth, price }
}

/// The cheapest first.
const CARDS: &[Card] = &[
    card("RTX A4000", 16_376, 76.7, 448.0, 0.00016),
    card("L4", 23_034, 121.0, 300.0, 0.00019),
    card("RTX A5000", 24_564, 111.1, 768.0, 0.00019),
    card("RTX 3090", 24_576, 71.0, 936.0, 0.00019),
    card("RTX 4090", 24_564, 165.2, 1008.0, 0.00031),
    card("A40", 46_068, 149.7, 696.0, 0.00034),
    card("RTX A6000", 49_140, 154.8, 768.0, 0.00034),
    card("L40", 46_068, 181.0, 864.0, 0.00053),
    card("L40S", 46_068, 362.0, 864.0, 0.00053),
    card("RTX 6000 Ada", 49_140, 364.2, 960.0, 0.00053),
    // The pool has both boards; the slower memory of the two.
    card("A100", 81_920, 312.0, 1935.0, 0.00076),
    card("RTX PRO 6000", 97_887, 503.8, 1597.0, 0.00111),
    card("H100", 81_559, 989.4, 3352.0, 0.00116),
    card("H200", 143_771, 989.4, 4800.0, 0.00155),
    card("B200", 183_359, 2250.0, 8000.0, 0.0024),
];

/// All cards, the cheapest first.
pub(crate) fn machines() -> Vec<Machine> {
    CARDS.iter().map(machine).collect()
}

fn machine(card: &Card) -> Machine {
    let kind = MachineKind::Gpu {
        name: card.name.to_owned(),
        memory_bytes: card.memory * MIB,
        bf16_tflops: card.tflops,
        memory_bandwidth: card.bandwidth * 1e9,
        usd_per_hour: card.price * 3600.0,
    };
    Machine { kind, count: 1 }
}

/// The names of all cards, for messages.
pub(crate) fn names() -> String {
    CARDS.iter().map(|card| card.name).collect::<Vec<_>>().join(", ")
}

/// The card of a name as people, drivers and price lists write it: `h100`, `NVIDIA H100 80GB HBM3`, `A100-SXM4-80GB`.
pub(crate) fn find(name: &str) -> Option<Machine> {
    let words = |text: &str| -> Vec<String> {
        let lower = text.to_ascii_lowercase();
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let asked = words(name);
    // Of the cards whose words all stand in the name, the one with the most: "RTX 6000 Ada" is no "RTX A6000".
    let all_there = |card: &&Card| words(card.name).iter().all(|word| asked.contains(word));
    let bare = |card: &&Card| words(card.name).last() == asked.last() && asked.len() == 1;
    CARDS
        .iter()
        .filter(all_there)
        .max_by_key(|card| words(card.name).len())
        .or_else(|| CARDS.iter().find(bare))
        .map(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers_jobs_and_price_lists_are_understood() {
        for (text, name) in [
            ("H100", "H100"),
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA A100-SXM4-80GB", "A100"),
            ("nvidia a100 80gb pcie", "A100"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("4090", "RTX 4090"),
            ("a6000", "RTX A6000"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
            ("NVIDIA L40S", "L40S"),
            ("NVIDIA L40", "L40"),
        ] {
            assert_eq!(find(text).map(|machine| machine.name()).as_deref(), Some(name), "{text}");
        }
        for text in ["", "TPU", "GTX 1080", "H1000"] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn the_table_goes_from_cheap_to_dear_and_every_card_is_found_by_its_name() {
        assert!(CARDS.windows(2).all(|pair| pair[0].price <= pair[1].price));
        assert!(machines().iter().all(|machine| find(&machine.name()).as_ref() == Some(machine)));
        let dearest = machines().last().and_then(Machine::usd_per_hour).unwrap();
        assert!((dearest - 8.64).abs() < 1e-9, "{dearest}");
    }
}
