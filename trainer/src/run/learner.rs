//! What learns: the base model with its adapters.

use brightrun_kernels::allocator;

use super::closing::Before;
use super::watch::Watch;
use super::{Parameters, RunSpec};
use crate::adapters::Adapters;
use crate::checkpoint::Fingerprint;
use crate::config::ModelConfig;
use crate::engine::{Base, Device, Engine};
use crate::events::Event;
use crate::lora::{self, LoraPlan};
use crate::plan::{DataFacts, Planner};
use crate::run::Data;
use crate::step::Recompute;
use crate::weights::{Checkpoint, expected_tensors};
use crate::{Error, Result};

/// What a run is about to learn; what computes it is an [`Engine`].
pub(super) struct Learner {
    pub(super) config: ModelConfig,
    pub(super) plan: LoraPlan,
    pub(super) adapters: Adapters,
    /// How a step is computed.
    pub(super) recompute: Recompute,
    /// What computes it, where that is not the processor.
    pub(super) device: Option<&'static str>,
}

// === impl Learner ===

impl Learner {
    /// Plans before anything large is read, and loads what fits.
    pub(super) fn load(
        spec: &RunSpec,
        data: &Data,
        device: Device<'_>,
        watch: &mut Watch,
    ) -> Result<(Self, Box<dyn Engine>)> {
        let parameters = &spec.parameters;
        let config = ModelConfig::read(&spec.model_dir)?;
        let checkpoint = Checkpoint::open(&spec.model_dir, &config)?.until(watch.around.stop);
        let (plan, adapters) = match &parameters.init_adapter {
            Some(folder) => {
                let (plan, tensors) = lora::read(folder, &config)?;
                let adapters = Adapters::from_tensors(&config, &plan, &tensors)?;
                (plan, adapters)
            }
            None => {
                let plan = lora::plan(&config, &parameters.lora())?;
                let adapters = Adapters::new(&config, &plan, parameters.seed)?;
                (plan, adapters)
            }
        };
        let recompute = recompute(spec, &config, &plan, data, watch)?;
        let (precision, kind) = (parameters.precision(), device.kind());
        let base = Base { config: &config, checkpoint: &checkpoint, precision: &precision, adapters: &adapters };
        let engine = device.load(&base, parameters.optimizer(), data.report().steps.total)?;
        // What reading has freed would otherwise be resident beside all that a step takes.
        allocator::give_back();
        Ok((Self { config, plan, adapters, recompute, device: kind }, engine))
    }

    pub(super) fn base_parameters(&self) -> u64 {
        let size = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        expected_tensors(&self.config).iter().map(|tensor| size(&tensor.shape)).sum()
    }
}

/// The fastest way to compute a step that fits into the machine; a run for which there is none is refused.
fn recompute(
    spec: &RunSpec,
    config: &ModelConfig,
    plan: &LoraPlan,
    data: &Data,
    watch: &mut Watch,
) -> Result<Recompute> {
    let parameters = &spec.parameters;
    let Some(machine) = &spec.machine else {
        return Ok(if parameters.recompute == Some(false) { Recompute::None } else { Recompute::Layers });
    };
    let facts = DataFacts::of(data);
    let planner = Planner::new(config, plan, parameters, &facts).as_run();
    let plan = planner.plan(machine)?;
    watch.emit(&Event::Planned {
        machine: machine.name(),
        peak_bytes: plan.choice.peak_bytes,
        usable_bytes: plan.usable_bytes,
        steps: plan.work.steps,
        tokens: plan.work.tokens,
        seconds: plan.time.step_seconds * plan.work.steps as f64,
    });
    planner.warning(machine).into_iter().for_each(|warning| watch.warn(warning));
    match planner.refusal(&plan, &[])? {
        Some(refusal) => Err(Error::DoesNotFit(refusal.to_string())),
        None => Ok(plan.choice.recompute),
    }
}

/// What a checkpoint and the run that goes on from it must have in common. How often is saved, and where files
/// are, is none of it.
pub(super) fn fingerprint(spec: &RunSpec, data: &Data, before: &Before, learner: &Learner) -> Result<Fingerprint> {
    let standard = Parameters::default();
    let decisive = Parameters {
        save_steps: standard.save_steps,
        save_minutes: standard.save_minutes,
        keep_checkpoints: standard.keep_checkpoints,
        recompute: standard.recompute,
        init_adapter: standard.init_adapter,
        ..spec.parameters.clone()
    };
    let report = data.report();
    let mut fingerprint = Fingerprint::new()
        .with_fields(&decisive)?
        .with("dataset", &report.training.sha256)
        .with("training examples", report.split.training.examples)
        .with("base model in memory", before.base)
        .with("adapted modules", learner.plan.modules.len());
    if let Some(device) = learner.device {
        fingerprint = fingerprint.with("computed on", device);
    }
    // A fresh one follows from the settings.
    if spec.parameters.init_adapter.is_some() {
        fingerprint = fingerprint.with("init_adapter", before.adapter.whole());
    }
    if let Some(validation) = &report.validation {
        fingerprint = fingerprint.with("validation dataset", &validation.sha256);
    }
    Ok(fingerprint)
}
