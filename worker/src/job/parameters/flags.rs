//! Hyperparameters on the command line: every one of them is a flag, `--learning-rate` for `learning_rate`.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, error::Error};
use serde_json::{Map, Value};

use super::{
    PRESETS,
    accepts::Accepts,
    items::{ITEMS, Item},
    table,
};

const HEADING: &str = "Hyperparameters";
const PRESET: &str = "preset";
/// Giving one of these replaces the other.
const WARM_UPS: [&str; 2] = ["warmup_steps", "warmup_ratio"];

/// Hyperparameters given on the command line, by their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ParameterFlags(Map<String, Value>);

// === impl ParameterFlags ===

impl ParameterFlags {
    /// Puts them into a request's hyperparameters, in place of what is there under any of their names.
    pub(in crate::job) fn put_into(&self, hyperparameters: &mut Map<String, Value>) {
        for (name, value) in &self.0 {
            let item = ITEMS.iter().find(|item| item.names[0] == name);
            item.into_iter().flat_map(|item| item.names).for_each(|alias| drop(hyperparameters.remove(*alias)));
            if WARM_UPS.contains(&name.as_str()) && WARM_UPS.iter().any(|other| !self.0.contains_key(*other)) {
                WARM_UPS.iter().for_each(|other| drop(hyperparameters.remove(*other)));
            }
            hyperparameters.insert(name.clone(), value.clone());
        }
    }
}

impl Args for ParameterFlags {
    fn augment_args(command: Command) -> Command {
        let presets: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        let preset = Arg::new(PRESET).long(PRESET).value_name("NAME").help_heading(HEADING).value_parser(presets);
        let preset = preset.help("Learning rate, batch size, epochs, rank, alpha and dropout together");
        ITEMS.iter().map(argument).fold(command.arg(preset), Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ParameterFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let preset = matches.get_one::<String>(PRESET).map(|name| (PRESET.to_owned(), Value::from(name.as_str())));
        let given = ITEMS.iter().filter_map(|item| {
            let name = item.names[0];
            Some((name.to_owned(), matches.get_one::<Value>(name)?.clone()))
        });
        self.0.extend(preset.into_iter().chain(given));
        Ok(())
    }
}

fn argument(item: &'static Item) -> Arg {
    let argument = Arg::new(item.names[0])
        .long(item.names[0].replace('_', "-"))
        .value_name(item.accepts.value_name())
        .help(format!("{} [default: {}]", item.meaning.trim_end_matches('.'), table::default_of(item)))
        .help_heading(HEADING)
        .hide_short_help(true)
        .value_parser(|text: &str| item.accepts.read(text));
    match item.accepts {
        Accepts::Flag => argument.num_args(0..=1).default_missing_value("true"),
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Map<String, Value>, String> {
        let command = ParameterFlags::augment_args(Command::new("x"));
        let matches = command.try_get_matches_from(["x"].iter().chain(arguments)).map_err(|error| error.to_string())?;
        Ok(ParameterFlags::from_arg_matches(&matches).unwrap().0)
    }

    #[test]
    fn every_parameter_is_a_flag() {
        ParameterFlags::augment_args(Command::new("x")).debug_assert();
        let given = parse(&[
            "--learning-rate=1e-4",
            "--num-epochs",
            "3",
            "--packing=false",
            "--use-rslora",
            "--targets",
            "q_proj,mlp.gate",
            "--preset=fast",
            "--schedule",
            "linear",
        ]);
        let expected = json!({ "preset": "fast", "learning_rate": 1e-4, "num_epochs": 3, "packing": false, "use_rslora": true,
            "targets": ["q_proj", "mlp.gate"], "schedule": "linear" });
        assert_eq!(Value::Object(given.unwrap()), expected);
        assert_eq!(parse(&["--targets", "all"]).unwrap()["targets"], "all");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        for (argument, expected) in [
            ("--learning-rate=fast", "a number from"),
            ("--batch-size=0", "a whole number from 1 to 4096"),
            ("--packing=maybe", "true or false"),
            ("--optimizer=sgd", "one of adamw, adamw8bit"),
            ("--lora-rank=8.5", "a whole number"),
            ("--seed=-1", "a whole number"),
        ] {
            let error = parse(&[argument]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_flag_replaces_what_the_request_says_under_any_name() {
        let mut request = json!({ "r": 8, "rank": 8, "warmup_ratio": 0.5, "seed": 1 });
        let flags = ParameterFlags(parse(&["--lora-rank=4", "--warmup-steps=2"]).unwrap());
        flags.put_into(request.as_object_mut().unwrap());
        assert_eq!(request, json!({ "lora_rank": 4, "warmup_steps": 2, "seed": 1 }));
    }
}
