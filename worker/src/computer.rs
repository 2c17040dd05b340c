//! What jobs are computed on: a card of this machine, or its processor.

use std::{
    env, fmt,
    str::FromStr,
    sync::{Mutex, TryLockError},
    thread,
    time::Duration,
};

use brightrun_trainer::{
    Result,
    cards::{self, Card},
    plan::{Machine, MachineKind},
    run::{self, GpuToUse, RunEnd, RunSpec, Surroundings},
};
use clap::Args;

use crate::{prices, this_machine};

/// Says what jobs are computed on, where the command line does not.
pub(crate) const VARIABLE: &str = "BRIGHTRUN_DEVICE";

/// Rates of a card that is in no price list: those of the slowest that is.
const SLOWEST_TFLOPS: f64 = 71.0;
const SLOWEST_BANDWIDTH: f64 = 300e9;
/// How often a job looks whether the card is free.
const LOOK: Duration = Duration::from_millis(200);

/// A card is one job's at a time: it takes all of the memory.
static IN_USE: Mutex<()> = Mutex::new(());

/// What somebody wants jobs to be computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The first card, or the processor where there is none.
    #[default]
    Auto,
    /// The processor.
    Processor,
    /// The card of this number.
    Card(u32),
}

/// What a command computes on.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct DeviceOption {
    /// What computes: auto (a card where there is one), cpu, cuda, or cuda:N for the card of that number [default:
    /// BRIGHTRUN_DEVICE of the environment, or auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<Wanted>,
}

/// What jobs are computed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Computer {
    Processor,
    Card(Card),
}

// === impl Wanted ===

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let number = |digits: &str| digits.parse().map(Self::Card).ok();
        let found = match lower.as_str() {
            "" | "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Processor),
            "cuda" | "gpu" => Some(Self::Card(0)),
            other => other.strip_prefix("cuda:").and_then(number),
        };
        found.ok_or_else(|| "must be auto, cpu, cuda, or cuda:N for the card of that number".to_owned())
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Processor => formatter.write_str("cpu"),
            Self::Card(number) => write!(formatter, "cuda:{number}"),
        }
    }
}

impl Wanted {
    /// What the environment says.
    pub(crate) fn from_variables(variable: impl Fn(&str) -> Option<String>) -> std::result::Result<Self, String> {
        variable(VARIABLE).unwrap_or_default().parse().map_err(|why| format!("{VARIABLE} {why}"))
    }
}

// === impl DeviceOption ===

impl DeviceOption {
    /// What the command line says, or else the environment.
    pub(crate) fn wanted(self) -> std::result::Result<Wanted, String> {
        self.device.map_or_else(|| Wanted::from_variables(|name| env::var(name).ok()), Ok)
    }
}

// === impl Computer ===

impl Computer {
    /// What there is of what somebody wants; why not where a card is wanted that is not there.
    pub(crate) fn choose(wanted: Wanted) -> Result<Self> {
        let number = match wanted {
            Wanted::Processor => return Ok(Self::Processor),
            Wanted::Auto => 0,
            Wanted::Card(number) => number,
        };
        match (cards::look(number).map(Self::Card), wanted) {
            (Err(why), Wanted::Auto) => {
                // A driver that shows a card means that somebody expects it to be used.
                if this_machine::gpus() > 0 {
                    tracing::warn!("there is a card, and the processor trains all the same: {why}");
                }
                Ok(Self::Processor)
            }
            (found, _) => found,
        }
    }

    /// What runs are planned for; nothing where the system does not tell.
    pub(crate) fn machine(&self) -> Option<Machine> {
        let Self::Card(card) = self else { return this_machine::processor() };
        let mut machine = prices::find(&card.name).unwrap_or_else(|| Machine {
            kind: MachineKind::Gpu {
                name: card.name.clone(),
                memory_bytes: card.free,
                bf16_tflops: SLOWEST_TFLOPS,
                memory_bandwidth: SLOWEST_BANDWIDTH,
                usd_per_hour: 0.0,
            },
            count: 1,
        });
        if let MachineKind::Gpu { memory_bytes, .. } = &mut machine.kind {
            *memory_bytes = card.free;
        }
        Some(machine)
    }

    /// Runs a job, as soon as no other one has the card.
    pub(crate) fn run(&self, spec: &mut RunSpec, around: Surroundings<'_>) -> Result<RunEnd> {
        let Self::Card(card) = self else {
            spec.machine = self.machine();
            return run::run(spec, &around);
        };
        let _mine = loop {
            match IN_USE.try_lock() {
                Ok(mine) => break mine,
                // Whoever had it is gone.
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    if around.stop.asked().is_some() {
                        // It ends before it begins, and says how far it had come.
                        return run::run(spec, &around);
                    }
                    thread::sleep(LOOK);
                }
            }
        };
        // Another job may have had its memory before.
        spec.machine = Self::Card(cards::look(card.number)?).machine();
        self.with_gpu(|gpu| run::run(spec, &Surroundings { gpu, ..around }))
    }

    /// Does something with the card, if it is one.
    pub(crate) fn with_gpu<T>(&self, work: impl FnOnce(Option<GpuToUse<'_>>) -> T) -> T {
        match self {
            Self::Processor => work(None),
            Self::Card(card) => {
                let open = || cards::open(card.number);
                work(Some(GpuToUse { open: &open, self_test: cards::OPS }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use brightrun_trainer::{
        Error,
        clock::Still,
        events::{Event, EventSink},
        run::Parameters,
        stop::{Stop, StopKind},
    };

    use super::*;

    struct Deaf;

    impl EventSink for Deaf {
        fn emit(&self, _: &Event) {}
    }

    #[test]
    fn what_is_wanted_is_said_in_one_word() {
        for (text, wanted) in [
            ("", Wanted::Auto),
            ("auto", Wanted::Auto),
            (" CPU ", Wanted::Processor),
            ("cuda", Wanted::Card(0)),
            ("CUDA:3", Wanted::Card(3)),
        ] {
            assert_eq!(text.parse(), Ok(wanted), "{text:?}");
            assert_eq!(wanted.to_string().parse(), Ok(wanted));
        }
        for text in ["cuda:", "cuda:-1", "cuda:one", "tpu", "0"] {
            assert!(text.parse::<Wanted>().unwrap_err().contains("auto, cpu, cuda"), "{text:?}");
        }
        let said = |text: &'static str| Wanted::from_variables(move |_| Some(text.to_owned()));
        assert_eq!((said("cpu"), Wanted::from_variables(|_| None)), (Ok(Wanted::Processor), Ok(Wanted::Auto)));
        assert!(said("tpu").unwrap_err().starts_with("BRIGHTRUN_DEVICE must be "));
    }

    #[test]
    fn a_card_is_planned_with_what_is_free_of_it() {
        let card = |name: &str| Computer::Card(Card { number: 0, name: name.into(), free: 70_000_000_000 });
        let known = card("NVIDIA H200").machine().unwrap();
        assert_eq!((known.name().as_str(), known.memory_bytes()), ("H200", 70_000_000_000));
        assert!(known.usd_per_hour().is_some_and(|price| price > 1.0));
        let unknown = card("NVIDIA Something 1").machine().unwrap();
        assert_eq!((unknown.name().as_str(), unknown.memory_bytes()), ("NVIDIA Something 1", 70_000_000_000));
        assert!(matches!(Computer::Processor.machine().map(|machine| machine.kind), Some(MachineKind::Cpu { .. })));
    }

    /// A job that is told to pause while another has the card is interrupted, not failed.
    #[test]
    fn a_job_that_waits_for_the_card_can_be_paused() {
        let _another = IN_USE.lock().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (model, dataset, output) = (folder.path().join("base"), folder.path().join("data.jsonl"), folder.path());
        let mut spec = RunSpec::new("waits", &model, dataset, output.to_owned(), Parameters::default());
        let stop = Stop::default();
        stop.ask(StopKind::Pause);
        let card = Computer::Card(Card { number: 0, name: "NVIDIA H200".into(), free: 70_000_000_000 });
        let ended = card.run(&mut spec, Surroundings::new(&Deaf, &Still, &stop));
        assert!(matches!(ended, Ok(RunEnd::Paused { step: 0, .. })), "{ended:?}");
        stop.ask(StopKind::Cancel);
        let ended = card.run(&mut spec, Surroundings::new(&Deaf, &Still, &stop));
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    }

    #[test]
    fn where_there_is_no_card_the_processor_trains_unless_one_is_asked_for() {
        assert_eq!(Computer::choose(Wanted::Processor).unwrap(), Computer::Processor);
        if cards::look(0).is_ok() {
            return;
        }
        assert_eq!(Computer::choose(Wanted::Auto).unwrap(), Computer::Processor);
        let why = Computer::choose(Wanted::Card(0)).unwrap_err().to_string();
        assert!(why.contains("no CUDA device"), "{why}");
    }
}
