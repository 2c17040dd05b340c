//! Every number in the artifacts follows from `metrics.jsonl`: here they are computed from its lines a second time, without
//! the code that made them.

use std::{collections::HashMap, fs, path::Path};

use serde_json::Value;

use super::*;

/// The lines of `metrics.jsonl`.
struct Lines(Vec<Value>);

impl Lines {
    fn read(folder: &Path) -> Self {
        let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        Self(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    fn of<'a>(&'a self, event: &'a str) -> impl DoubleEndedIterator<Item = &'a Value> {
        self.0.iter().filter(move |line| line["event"] == event)
    }

    fn numbers(&self, event: &str, field: &str) -> Vec<f64> {
        self.of(event).map(|line| line[field].as_f64().unwrap()).collect()
    }

    fn times(&self, part: &str) -> f64 {
        self.of("step").map(|line| line["time"][part].as_f64().unwrap()).sum()
    }
}

fn json_file(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn near(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= 1e-12 * wanted.abs()
}

fn least(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

fn greatest(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    (numbers[(numbers.len() - 1) / 2] + numbers[numbers.len() / 2]) / 2.0
}

#[test]
fn a_history_that_was_read_gives_the_same_files() {
    let mut job = Job::new();
    let (folder, facts) = written(&job);
    job.history = History::read(&folder.path().join("metrics.jsonl")).unwrap();
    assert_eq!(written(&job).1, facts);
}

#[test]
fn the_result_says_what_the_lines_say() {
    let (folder, _) = written(&Job::new());
    let lines = Lines::read(folder.path());
    let (losses, smoothed) = (lines.numbers("step", "loss"), lines.numbers("step", "smoothed_loss"));
    let (validation, tokens) = (lines.numbers("evaluation", "loss"), lines.numbers("step", "tokens"));
    let norms = lines.numbers("step", "gradient_norm");
    let (last, seconds) = (losses.len() - 1, lines.times("total"));
    let evaluating: f64 = lines.numbers("evaluation", "seconds").iter().sum();
    let best = least(&validation);
    let best_step = lines.of("evaluation").find(|line| line["loss"] == best).unwrap()["step"].as_f64().unwrap();
    let experts =
        |field: &str| -> Vec<f64> { lines.of("step").map(|line| line["experts"][field].as_f64().unwrap()).collect() };
    let last_step = lines.of("step").next_back().unwrap();
    let of_last = |field: &str| last_step[field].as_f64().unwrap();
    let mut wanted: HashMap<&str, f64> = HashMap::from([
        ("/progress", 100.0),
        ("/current_step", of_last("step")),
        ("/current_epoch", of_last("epoch")),
        ("/model_metadata/final_loss", smoothed[last]),
        ("/model_metadata/training_time", seconds + evaluating),
        ("/metrics/training_loss", smoothed[last]),
        ("/metrics/training_loss_raw", losses[last]),
        ("/metrics/validation_loss", validation[validation.len() - 1]),
        ("/metrics/learning_rate", of_last("learning_rate")),
        ("/metrics/throughput", tokens.iter().sum::<f64>() / seconds),
        ("/metrics/gradient_norm", norms[last]),
        ("/quality/loss_reduction_percent", (smoothed[0] - smoothed[last]) / smoothed[0] * 100.0),
        ("/quality/perplexity", validation[validation.len() - 1].exp()),
        ("/quality/validation_gap", validation[validation.len() - 1] - smoothed[last]),
    ]);
    let summary = [
        ("steps", of_last("step")),
        ("epochs", of_last("epoch")),
        ("progress", of_last("progress")),
        ("first_loss", losses[0]),
        ("last_loss", losses[last]),
        ("lowest_loss", least(&losses)),
        ("highest_loss", greatest(&losses)),
        ("mean_loss", mean(&losses)),
        ("first_smoothed_loss", smoothed[0]),
        ("final_loss", smoothed[last]),
        ("evaluations", validation.len() as f64),
        ("first_validation_loss", validation[0]),
        ("last_validation_loss", validation[validation.len() - 1]),
        ("best_validation_loss", best),
        ("best_validation_step", best_step),
        ("perplexity", validation[validation.len() - 1].exp()),
        ("best_perplexity", best.exp()),
        ("last_learning_rate", of_last("learning_rate")),
        ("last_gradient_norm", norms[last]),
        ("max_gradient_norm", greatest(&norms)),
        ("tokens", tokens.iter().sum()),
        ("target_tokens", lines.numbers("step", "target_tokens").iter().sum()),
        ("training_seconds", seconds),
        ("evaluation_seconds", evaluating),
        ("mean_tokens_per_second", tokens.iter().sum::<f64>() / seconds),
        ("median_tokens_per_second", median(lines.numbers("step", "tokens_per_second"))),
        ("time_shares/data", lines.times("data") / seconds),
        ("time_shares/forward", lines.times("forward") / seconds),
        ("time_shares/backward", lines.times("backward") / seconds),
        ("time_shares/optimizer", lines.times("optimizer") / seconds),
        ("time_shares/idle", lines.times("idle") / seconds),
        ("peak_memory_bytes", greatest(&lines.numbers("step", "peak_memory_bytes"))),
        ("experts/mean_idle_share", mean(&experts("idle_share"))),
        ("experts/last_idle_share", experts("idle_share")[last]),
        ("experts/mean_imbalance", mean(&experts("imbalance"))),
        ("experts/mean_router_entropy", mean(&experts("router_entropy"))),
        // Of the eight experts of the sample, the second and the fourth of the first layer and the first two of the
        // second never have a token.
        ("experts/never_used_share", never_used(&lines)),
    ];
    let summary_paths: Vec<(String, f64)> =
        summary.iter().map(|(name, value)| (format!("/summary/{name}"), *value)).collect();
    wanted.extend(summary_paths.iter().map(|(path, value)| (path.as_str(), *value)));
    let result = json_file(folder.path(), "result.json");
    for (path, wanted) in &wanted {
        let found = result.pointer(path).and_then(Value::as_f64);
        assert!(found.is_some_and(|found| near(found, *wanted)), "{path}: {found:?}, not {wanted}");
    }
    // The stars follow from the reduction by a formula that has its own tests.
    assert_eq!(result["quality"]["overall_score"], 5);
    let mut paths = Vec::new();
    for part in ["summary", "metrics", "quality"] {
        numeric_paths(&result[part], &format!("/{part}"), &mut paths);
    }
    let forgotten: Vec<_> =
        paths.iter().filter(|path| !wanted.contains_key(path.as_str()) && *path != "/quality/overall_score").collect();
    assert!(forgotten.is_empty(), "derived by nobody: {forgotten:?}");
}

fn never_used(lines: &Lines) -> f64 {
    let mut tokens: HashMap<(u64, usize), u64> = HashMap::new();
    for layer in lines.of("health").flat_map(|line| line["layers"].as_array().unwrap()) {
        for (expert, count) in layer["tokens_per_expert"].as_array().unwrap().iter().enumerate() {
            *tokens.entry((layer["layer"].as_u64().unwrap(), expert)).or_default() += count.as_u64().unwrap();
        }
    }
    tokens.values().filter(|count| **count == 0).count() as f64 / tokens.len() as f64
}

fn numeric_paths(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| numeric_paths(value, &format!("{path}/{name}"), found));
        }
        Value::Number(_) => found.push(path.to_owned()),
        _ => {}
    }
}

#[test]
fn the_log_of_the_trainer_says_what_the_lines_say() {
    let (folder, _) = written(&Job::new());
    let lines = Lines::read(folder.path());
    let state = json_file(folder.path(), "trainer_state.json");
    let log = state["log_history"].as_array().unwrap();
    let (mut entries, mut tokens) = (log.iter(), 0);
    for line in lines.0.iter().filter(|line| line["event"] != "health") {
        let entry = entries.next().unwrap();
        let fields: &[(&str, &str)] = if line["event"] == "step" {
            tokens += line["tokens"].as_u64().unwrap();
            assert_eq!(entry["num_tokens"], tokens);
            &[
                ("loss", "loss"),
                ("loss_smoothed", "smoothed_loss"),
                ("grad_norm", "gradient_norm"),
                ("learning_rate", "learning_rate"),
            ]
        } else {
            &[("eval_loss", "loss"), ("eval_perplexity", "perplexity"), ("eval_runtime", "seconds")]
        };
        for (theirs, ours) in fields {
            assert_eq!(entry[*theirs], line[*ours], "{line}");
        }
        assert_eq!(entry["step"], line["step"]);
        // 20 steps an epoch.
        assert_eq!(entry["epoch"].as_f64().unwrap(), line["step"].as_f64().unwrap() / 20.0);
    }
    let last = entries.next().unwrap();
    assert!(entries.next().is_none());
    let seconds = lines.times("total");
    let evaluating: f64 = lines.numbers("evaluation", "seconds").iter().sum();
    for (field, wanted) in [
        ("train_loss", mean(&lines.numbers("step", "loss"))),
        ("train_runtime", seconds + evaluating),
        ("train_steps_per_second", lines.of("step").count() as f64 / seconds),
        ("train_tokens_per_second", tokens as f64 / seconds),
    ] {
        assert!(near(last[field].as_f64().unwrap(), wanted), "{field}");
    }
    let validation = lines.numbers("evaluation", "loss");
    assert_eq!(state["best_metric"], least(&validation));
    assert_eq!(state["num_input_tokens_seen"], tokens);
    assert_eq!((&state["global_step"], &state["max_steps"]), (&60.into(), &60.into()));
}

#[test]
fn tensorboard_shows_what_the_lines_say() {
    let job = Job::new();
    let (folder, _) = written(&job);
    let lines = Lines::read(folder.path());
    let mut scalars =
        tensorboard::tests::read(&fs::read(folder.path().join(tensorboard::EVENTS_FILE)).unwrap()).into_iter();
    let mut time = job.record().started_at;
    for line in lines.0.iter().filter(|line| line["event"] != "health") {
        let tags: &[(&str, &str)] = if line["event"] == "step" {
            time += line["time"]["total"].as_f64().unwrap();
            &[
                ("train/loss", "loss"),
                ("train/loss_smoothed", "smoothed_loss"),
                ("train/learning_rate", "learning_rate"),
                ("train/grad_norm", "gradient_norm"),
                ("train/tokens_per_second", "tokens_per_second"),
            ]
        } else {
            time += line["seconds"].as_f64().unwrap();
            &[("eval/loss", "loss"), ("eval/perplexity", "perplexity")]
        };
        for (tag, field) in tags {
            let wanted =
                (time, line["step"].as_u64().unwrap(), (*tag).to_owned(), line[*field].as_f64().unwrap() as f32);
            assert_eq!(scalars.next().unwrap(), wanted);
        }
    }
    assert!(scalars.next().is_none());
}

#[test]
fn the_card_says_what_the_lines_say() {
    let (folder, _) = written(&Job::new());
    let lines = Lines::read(folder.path());
    let card = fs::read_to_string(folder.path().join("README.md")).unwrap();
    let results = card.split("## Results").nth(1).unwrap().split("## Data").next().unwrap();
    let found: HashMap<&str, f64> = results
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter_map(|(name, value)| Some((name, value.split(' ').next()?.parse().ok()?)))
        .collect();
    let (losses, smoothed) = (lines.numbers("step", "loss"), lines.numbers("step", "smoothed_loss"));
    let validation = lines.numbers("evaluation", "loss");
    let sum = |field: &str| lines.numbers("step", field).iter().sum::<f64>();
    let wanted = [
        ("training loss of the first step", losses[0]),
        ("training loss at the end, smoothed", smoothed[59]),
        ("first validation loss", validation[0]),
        ("best validation loss", least(&validation)),
        ("last validation loss", validation[5]),
        ("perplexity (exp of the last validation loss)", validation[5].exp()),
        ("steps", 60.0),
        ("tokens seen", sum("tokens")),
        ("tokens learnt", sum("target_tokens")),
        ("tokens a second", sum("tokens") / lines.times("total")),
        ("seconds of training", lines.times("total")),
        ("most memory in use, GiB", greatest(&lines.numbers("step", "peak_memory_bytes")) / 2f64.powi(30)),
        ("routed experts that never got a token", 100.0 * never_used(&lines)),
    ];
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (name, wanted) in wanted {
        // The card rounds: four digits, or one or two behind the point.
        assert!(
            (found[name] - wanted).abs() <= 5.1e-4 * wanted.abs().max(1.0),
            "{name}: {} is not {wanted}",
            found[name]
        );
    }
    let reduction = (smoothed[0] - smoothed[59]) / smoothed[0] * 100.0;
    assert!(
        results.contains(&format!("★★★★★ excellent: the smoothed training loss fell by {reduction:.1} %")),
        "{results}"
    );
}

#[test]
fn the_picture_shows_what_the_lines_say() {
    let (folder, _) = written(&Job::new());
    let lines = Lines::read(folder.path());
    let drawing = fs::read_to_string(folder.path().join("loss_curve.svg")).unwrap();
    let loss = axis(&drawing, "loss-tick", "y");
    let rate = axis(&drawing, "rate-tick", "y");
    let steps = axis(&drawing, "step-tick", "x");
    for (name, event, field, scale) in [
        ("training", "step", "loss", &loss),
        ("smoothed", "step", "smoothed_loss", &loss),
        ("learning-rate", "step", "learning_rate", &rate),
        ("validation", "evaluation", "loss", &loss),
    ] {
        let element = elements(&drawing, "polyline", name);
        assert_eq!(element.len(), 1, "{name} is one line");
        let points: Vec<(f64, f64)> = attribute(element[0], "points")
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        let wanted: Vec<(f64, f64)> =
            lines.numbers(event, "step").into_iter().zip(lines.numbers(event, field)).collect();
        assert_eq!(points.len(), wanted.len());
        for ((x, y), (step, value)) in points.into_iter().zip(wanted) {
            // A hundredth of a unit on the paper, and ticks are measured as roughly.
            assert!((steps(x) - step).abs() < 0.01, "{name}: step {} is not {step}", steps(x));
            let tolerance = (scale(0.0) - scale(1.0)).abs() * 0.03;
            assert!((scale(y) - value).abs() < tolerance, "{name}, step {step}: {} is not {value}", scale(y));
        }
    }
    let smoothed = lines.numbers("step", "smoothed_loss");
    let validation = lines.numbers("evaluation", "loss");
    let words = format!(
        "60 steps · training loss {:.3} at first, {:.3} at the end (smoothed) · best validation loss {:.3} at step 40",
        lines.numbers("step", "loss")[0],
        smoothed[59],
        least(&validation)
    );
    assert!(drawing.contains(&words), "{words}");
}

/// The elements of a drawing of one kind and class.
fn elements<'a>(drawing: &'a str, kind: &str, class: &str) -> Vec<&'a str> {
    let start = format!("<{kind} class=\"{class}\"");
    drawing.lines().filter(|line| line.starts_with(&start)).collect()
}

fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    element.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap()
}

/// What a place on the paper means, by the first and the last number beside an axis.
fn axis(drawing: &str, class: &str, coordinate: &str) -> impl Fn(f64) -> f64 + use<> {
    // Numbers beside an upward axis stand 4.5 lower than what they mean.
    let lower = if coordinate == "y" { 4.5 } else { 0.0 };
    let ticks: Vec<(f64, f64)> = elements(drawing, "text", class)
        .into_iter()
        .map(|element| {
            let place: f64 = attribute(element, coordinate).parse().unwrap();
            let label = element.split_once('>').unwrap().1.strip_suffix("</text>").unwrap();
            (place - lower, label.replace(',', "").parse().unwrap())
        })
        .collect();
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    move |place| first.1 + (place - first.0) / (last.0 - first.0) * (last.1 - first.1)
}
