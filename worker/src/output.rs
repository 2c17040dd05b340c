//! What `brightrun train` and `brightrun validate` say at their end.

use std::{
    io::{self, Write},
    path::Path,
};

use serde_json::{Value, json};

use crate::{local_run::Outcome, validate::Verdict};

/// Prints the result: JSON and good news on standard output, bad news for people on standard error.
pub(crate) fn print(outcome: &Outcome, as_json: bool) {
    let text = render(outcome, as_json);
    if as_json || matches!(outcome, Outcome::Done { .. }) {
        write_to(&mut io::stdout().lock(), &text);
    } else {
        write_to(&mut io::stderr().lock(), &text);
    }
}

/// Prints what `brightrun validate` found: the report on standard output, what went wrong on standard error.
pub(crate) fn print_verdict(verdict: &Verdict, as_json: bool) {
    let text = render_verdict(verdict, as_json);
    if as_json || matches!(verdict, Verdict::Read(_)) {
        write_to(&mut io::stdout().lock(), &text);
    } else {
        write_to(&mut io::stderr().lock(), &text);
    }
}

fn render_verdict(verdict: &Verdict, as_json: bool) -> String {
    match (verdict, as_json) {
        (Verdict::Read(report), true) => format!("{:#}\n", serde_json::to_value(report).unwrap_or_default()),
        (Verdict::Read(report), false) => report.to_string(),
        (Verdict::Refused(problems), true) => {
            format!("{:#}\n", json!({ "ready": false, "error": problems.join("; "), "problems": problems }))
        }
        (Verdict::Refused(problems), false) => {
            format!("The dataset was not looked at:\n  {}\n", problems.join("\n  "))
        }
        (Verdict::Failed(error), true) => format!("{:#}\n", json!({ "ready": false, "error": error })),
        (Verdict::Failed(error), false) => format!("The dataset cannot be read: {error}\n"),
    }
}

/// Writes all of a text. A reader that has gone away is no reason to fail after the work is done.
pub(crate) fn write_to(stream: &mut impl Write, text: &str) {
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
}

/// The result for people, or as JSON.
fn render(outcome: &Outcome, as_json: bool) -> String {
    if as_json { format!("{}\n", json_result(outcome)) } else { text_result(outcome) }
}

fn json_result(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Done { job_id, summary, time } => {
            let mut result = json!({ "status": "success", "job_id": job_id, "training_time": time.as_secs_f64() });
            let summary = serde_json::to_value(summary).unwrap_or_default();
            if let (Some(result), Value::Object(summary)) = (result.as_object_mut(), summary) {
                result.extend(summary);
            }
            result
        }
        Outcome::Refused(problems) => {
            json!({ "status": "failed", "error": problems.join("; "), "problems": problems })
        }
        Outcome::Paused { job_id, step, folder, noted } => {
            let resume = noted.then(|| resume_command(folder));
            json!({ "status": "paused", "job_id": job_id, "steps": step, "resume": resume })
        }
        Outcome::DoesNotFit(error) | Outcome::Failed(error) => json!({ "status": "failed", "error": error }),
    }
}

fn text_result(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused(problems) => format!("The job cannot be run:\n  {}\n", problems.join("\n  ")),
        Outcome::DoesNotFit(error) => format!("The job does not fit: {error}\n"),
        Outcome::Failed(error) => format!("The job failed: {error}\n"),
        Outcome::Paused { job_id, folder, noted: false, .. } => format!(
            "Job {job_id} is interrupted before it was known whether the checkpoints in {} are its own; they are as they \
             were. Go on with the same command.\n",
            folder.display()
        ),
        Outcome::Paused { job_id, step, folder, .. } => {
            let resume = resume_command(folder);
            format!("Job {job_id} is interrupted; {step} steps are saved. Go on with:\n  {resume}\n")
        }
        Outcome::Done { job_id, summary, time } => {
            let seconds = time.as_secs_f64();
            let validation = summary.validation_loss.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
            let mut text = format!(
                "Job {job_id} is done: {} steps, {} epochs, {} tokens in {seconds:.1} s\n  \
                 trained     {} parameters\n  \
                 loss        {:.4} -> {:.4} (smoothed){validation}; {} of 5 stars\n  \
                 adapter     {}\n  \
                 loss curve  {}\n  \
                 dataset     {}\n  \
                 result      {}\n",
                summary.steps,
                summary.epochs,
                summary.tokens,
                summary.trainable_parameters,
                summary.first_loss,
                summary.final_loss,
                summary.stars,
                summary.adapter_dir.display(),
                summary.loss_curve.display(),
                summary.dataset_report.display(),
                summary.result.display(),
            );
            summary.warnings.iter().for_each(|warning| text.push_str(&format!("  warning     {warning}\n")));
            text
        }
    }
}

fn resume_command(folder: &Path) -> String {
    let folder = folder.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=,:@%".contains(c);
    if folder.chars().all(plain) {
        return format!("brightrun resume {folder}");
    }
    format!("brightrun resume '{}'", folder.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use brightrun_trainer::run::RunSummary;

    use super::*;

    fn done() -> Outcome {
        let summary = RunSummary {
            steps: 60,
            epochs: 10,
            first_loss: 7.25,
            final_loss: 2.5,
            validation_loss: Some(3.0),
            adapter_step: 60,
            stars: 4,
            trainable_parameters: 1000,
            tokens: 5000,
            adapter_dir: "out/adapter".into(),
            loss_curve: "out/loss_curve.svg".into(),
            dataset_report: "out/dataset_report.json".into(),
            model_card: "out/README.md".into(),
            result: "out/result.json".into(),
            warnings: vec!["careful".into()],
        };
        Outcome::Done { job_id: "j".into(), summary: Box::new(summary), time: Duration::from_millis(2500) }
    }

    #[test]
    fn success_names_the_files_and_the_losses() {
        let text = render(&done(), false);
        for part in [
            "60 steps",
            "2.5 s",
            "7.2500 -> 2.5000",
            "validation 3.0000",
            "out/adapter",
            "out/dataset_report.json",
            "out/result.json",
            "4 of 5 stars",
            "careful",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let json: Value = serde_json::from_str(&render(&done(), true)).unwrap();
        assert_eq!((&json["status"], &json["final_loss"]), (&json!("success"), &json!(2.5)));
        assert_eq!(json["training_time"], 2.5);
    }

    #[test]
    fn failure_carries_an_error_at_the_top() {
        let json: Value = serde_json::from_str(&render(&Outcome::Failed("no".into()), true)).unwrap();
        assert_eq!(json["error"], "no");
        let paused = Outcome::Paused { job_id: "j".into(), step: 7, folder: "it's here".into(), noted: true };
        let json: Value = serde_json::from_str(&render(&paused, true)).unwrap();
        assert_eq!((&json["status"], paused.exit_code()), (&json!("paused"), 75));
        assert_eq!(json["resume"], r"brightrun resume 'it'\''s here'");
        let other = Outcome::Paused { job_id: "j".into(), step: 7, folder: "out".into(), noted: false };
        assert!(render(&other, false).contains("the same command") && render(&other, true).contains("\"resume\":null"));
        let refused = Outcome::Refused(vec!["a: b".into(), "c: d".into()]);
        let json: Value = serde_json::from_str(&render(&refused, true)).unwrap();
        assert_eq!((&json["error"], refused.exit_code()), (&json!("a: b; c: d"), 2));
    }
}
