//! The plan that a run makes at its start against the memory that the run's process has taken at its end: all of it, from
//! reading the data to proving the adapter, checkpoints written beside the steps included. Linux only: the high-water mark
//! is read from `/proc`.
#![cfg(target_os = "linux")]

use std::env;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use brightrun_tests::child::{high_water_mark, numbers_of};
use brightrun_tests::toy::{Mixers, Shape, Toy};
use brightrun_trainer::clock::Still;
use brightrun_trainer::config::Family;
use brightrun_trainer::demo;
use brightrun_trainer::events::{Event, EventSink};
use brightrun_trainer::lora::TargetSet;
use brightrun_trainer::optim::OptimizerKind;
use brightrun_trainer::plan::Machine;
use brightrun_trainer::run::{self, Parameters, PrecisionKind, RunSpec, Surroundings};
use brightrun_trainer::stop::Stop;

/// The case that a child runs, and the folder with its model and data.
const CASE: &str = "BRIGHTRUN_TEST_RUN";
const FOLDER: &str = "BRIGHTRUN_TEST_FOLDER";
/// The child's test.
const CHILD: &str = "run_in_a_process_of_its_own";
const THREADS: usize = 2;
/// The share by which a prediction may be off: 5 % were wanted and are what is found; what the allocator holds on to differs
/// by 2 to 3 % from run to run at these small sizes.
const TOLERANCE: f64 = 0.08;

fn cases() -> Vec<(Family, Parameters)> {
    let parameters = Parameters {
        max_steps: Some(3),
        save_steps: Some(1),
        eval_steps: Some(2),
        lora_rank: 16,
        batch_size: 32,
        micro_batch_tokens: Some(2048),
        ..Parameters::default()
    };
    vec![
        (Family::Qwen3Next, Parameters { targets: TargetSet::All, expert_rank: Some(8), ..parameters.clone() }),
        (Family::Qwen3Next, Parameters { recompute: Some(false), ..parameters.clone() }),
        (
            Family::Qwen3Moe,
            Parameters {
                base_precision: PrecisionKind::Full,
                optimizer: OptimizerKind::AdamW8bit,
                recompute: Some(true),
                ..parameters.clone()
            },
        ),
        (Family::Qwen2Moe, Parameters { targets: TargetSet::Classic, lora_dropout: 0.0, packing: false, ..parameters }),
    ]
}

/// Remembers the plan.
#[derive(Default)]
struct Planned(Mutex<Option<u64>>);

impl EventSink for Planned {
    fn emit(&self, event: &Event) {
        if let Event::Planned { peak_bytes, .. } = event {
            *self.0.lock().unwrap() = Some(*peak_bytes);
        }
    }
}

/// Runs one case where it is asked to; otherwise there is nothing to do.
#[test]
#[ignore = "runs as a process of its own"]
fn run_in_a_process_of_its_own() {
    let (Ok(index), Ok(folder)) = (env::var(CASE), env::var(FOLDER)) else { return };
    let (folder, (family, parameters)) = (Path::new(&folder), cases().swap_remove(index.parse().unwrap()));
    let output = tempfile::tempdir_in(folder).unwrap();
    let (model, dataset) = (folder.join(family.model_type()), folder.join("conversations.jsonl"));
    let spec = RunSpec {
        machine: Some(Machine::cpu(THREADS, 1 << 36)),
        ..RunSpec::new("measured", &model, dataset, output.path().to_owned(), parameters)
    };
    let planned = Planned::default();
    run::run(&spec, &Surroundings::new(&planned, &Still, &Stop::default())).unwrap();
    println!("planned {} measured {}", planned.0.into_inner().unwrap().unwrap(), high_water_mark().unwrap());
}

fn measured(index: usize, folder: &Path) -> Result<(f64, f64)> {
    let (index, folder) = (index.to_string(), folder.to_str().context("an odd path")?);
    match numbers_of(CHILD, "planned ", THREADS, &[(CASE, &index), (FOLDER, folder)])?[..] {
        [planned, measured] => Ok((planned, measured)),
        _ => bail!("no numbers"),
    }
}

#[test]
fn a_run_takes_the_memory_that_it_has_planned() {
    let folder = tempfile::tempdir().unwrap();
    demo::write_dataset(&folder.path().join("conversations.jsonl")).unwrap();
    for family in Family::ALL {
        let mixers = if family == Family::Qwen3Next { Mixers::Both } else { Mixers::Attention };
        let shape = Shape { family, mixers, layers: 4, hidden: 512, vocabulary: 4096, experts: 16, expert_width: 256 };
        let dir = folder.path().join(family.model_type());
        std::fs::create_dir(&dir).unwrap();
        Toy::write(&dir, &shape, 1).unwrap();
        demo::write_tokenizer(&dir).unwrap();
    }
    let mut report = String::new();
    let mut within = true;
    for (index, (family, _)) in cases().iter().enumerate() {
        let (planned, measured) = measured(index, folder.path()).unwrap();
        let off = planned / measured - 1.0;
        within &= off.abs() <= TOLERANCE;
        let numbers = format!("planned {:.1} MB, measured {:.1}", planned / 1e6, measured / 1e6);
        report.push_str(&format!("{:+.1} %: {numbers}: {family:?}, case {index}\n", 100.0 * off));
    }
    println!("{report}");
    assert!(within, "\n{report}");
}
