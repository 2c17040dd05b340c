use serde_json::json;

use super::*;

/// A file with an example for each `(conversation, tokens before cutting, tokens)`, one a line; half of the tokens are
/// learnt.
pub(super) struct TestFile {
    pub(super) facts: FileFacts,
    pub(super) documents: Vec<Document>,
}

impl TestFile {
    pub(super) fn source(&self) -> Source<'_> {
        Source { name: "data.jsonl".into(), facts: &self.facts, documents: &self.documents }
    }

    fn find(mut self, kind: FindingKind, lines: impl IntoIterator<Item = u64>) -> Self {
        for line in lines {
            self.facts.findings.push(Finding::new(kind, line, format!("message of line {line}")));
        }
        self
    }
}

pub(super) fn file(examples: &[(u64, u32, u32)]) -> TestFile {
    let document = |(index, &(conversation, whole_tokens, tokens)): (usize, &(u64, u32, u32))| Document {
        line: index as u64 + 1,
        conversation,
        offset: 0,
        tokens,
        targets: tokens / 2,
        whole_tokens,
        cut_turns: if whole_tokens > tokens { 3 } else { 0 },
    };
    let documents: Vec<Document> = examples.iter().enumerate().map(document).collect();
    let conversations = documents.iter().map(|d| d.conversation).collect::<HashSet<_>>().len() as u64;
    let cut = documents.iter().filter(|document| document.whole_tokens > document.tokens).map(|document| document.line);
    let facts = FileFacts {
        sha256: "ab".repeat(32),
        bytes: 12_345,
        format: "turns".into(),
        template: "chat_template.jinja".into(),
        lines: documents.len() as u64,
        examples: documents.len() as u64,
        conversations,
        turns: 4 * conversations,
        learnt_turns: documents.len() as u64,
        tokens: documents.iter().map(|document| u64::from(document.tokens)).sum(),
        target_tokens: documents.iter().map(|document| u64::from(document.targets)).sum(),
        cut_turns: 3 * cut.clone().count() as u64,
        ..FileFacts::default()
    };
    let cut: Vec<u64> = cut.collect();
    TestFile { facts, documents }.find(FindingKind::HistoryCut, cut)
}

fn settings() -> Settings {
    Settings {
        max_seq_length: 90,
        train_on_prompt: false,
        train_on_all_turns: false,
        packing: true,
        micro_batch_tokens: 200,
        batch_size: 2,
        num_epochs: 3,
        max_steps: None,
        validation_split: 0.25,
        seed: 1,
    }
}

fn everything(file: &TestFile) -> Vec<u32> {
    (0..file.documents.len() as u32).collect()
}

/// The report of a file that is learnt whole, or split by its last document.
pub(super) fn report_of(training: &TestFile, validation: Option<&TestFile>) -> DatasetReport {
    let mut split =
        Split { training: everything(training), validation: validation.map(everything).unwrap_or_default() };
    if validation.is_none() && split.training.len() > 1 {
        split.validation.extend(split.training.pop());
    }
    let validation = validation.map(TestFile::source);
    DatasetReport::new(&training.source(), validation.as_ref(), &split, settings()).unwrap()
}

#[test]
fn the_numbers_are_those_of_the_documents() {
    let training = file(&[(1, 40, 40), (1, 100, 90), (2, 60, 60), (3, 30, 30)]);
    let report = report_of(&training, None);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        json["statistics"],
        json!({
            "total_training_pairs": 3, "total_validation_pairs": 1, "total_conversations": 3, "total_tokens": 220,
            "avg_turns_per_conversation": 4.0,
            // The longest example of each conversation, whole: 100 + 60 + 30 in 12 turns.
            "avg_tokens_per_turn": 15.83, "validation_split": 0.25,
        })
    );
    assert_eq!(json["training"]["truncations"], json!({ "examples": 1, "turns": 3, "tokens": 10 }));
    assert_eq!((&json["training"]["learnt_share"], &json["training"]["masked_share"]), (&json!(0.5), &json!(0.5)));
    assert_eq!(json["training"]["lengths"]["longest"], 100);
    assert_eq!(json["split"]["by"], "conversation");
    assert_eq!(
        json["split"]["training"],
        json!({ "examples": 3, "conversations": 2, "tokens": 190, "learnt_tokens": 95 })
    );
    // Two steps of two examples and one; each fits a micro-batch of 200.
    assert_eq!(json["steps"], json!({ "per_epoch": 2, "total": 6 }));
    assert_eq!(
        json["packing"],
        json!({ "capacity": 200, "micro_batches_per_epoch": 2, "fill_share": 0.475, "padding_share": 0.0 })
    );
    assert!(report.ready && report.refusal(Path::new("r.json")).is_none());
}

#[test]
fn fields_have_their_order_and_the_file_is_whole() {
    let report = report_of(&file(&[(1, 40, 40)]), None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(REPORT_FILE);
    report.write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("{\n  \"report_version\": 1,\n  \"ready\": true,\n  \"verdict\": \"ready: 1 example to"),
        "{text}"
    );
    let places: Vec<_> = ["statistics", "settings", "template", "training", "validation", "split", "packing", "steps"]
        .iter()
        .map(|name| text.find(&format!("\n  \"{name}\": ")).unwrap())
        .collect();
    assert!(places.is_sorted());
}

#[test]
fn padding_and_the_step_limit_are_counted() {
    let training = file(&[(1, 50, 50), (2, 30, 30)]);
    let settings = Settings { packing: false, max_steps: Some(2), ..settings() };
    let split = Split { training: vec![0, 1], validation: vec![] };
    let report = DatasetReport::new(&training.source(), None, &split, settings).unwrap();
    assert_eq!((report.steps.per_epoch, report.steps.total), (1, 2));
    assert_eq!((report.packing.padding_share, report.packing.fill_share), (0.2, 0.4));
    assert_eq!(report.split.by, SplitKind::None);
}

#[test]
fn a_refusal_has_the_first_findings_by_line_and_says_where_the_others_are() {
    let training = file(&[(1, 40, 40)]);
    let training = training.find(FindingKind::InvalidJson, (20..35).rev()).find(FindingKind::UnknownRole, [7]);
    let report = report_of(&training, None);
    assert!(!report.ready);
    let text = report.refusal(Path::new("out/dataset_report.json")).unwrap().to_string();
    assert!(
        text.contains("data.jsonl, 16 fatal findings\n  line 7: message of line 7 (unknown_role)\n  line 20: "),
        "{text}"
    );
    assert!(text.contains("line 28: ") && !text.contains("line 29: "), "{text}");
    assert!(text.contains("… and 6 more") && text.ends_with("all findings are in out/dataset_report.json"), "{text}");
}

#[test]
fn conversations_in_both_files_are_found_once_each() {
    let training = file(&[(1, 40, 40), (3, 40, 40)]);
    let validation = file(&[(5, 40, 40), (3, 30, 30), (3, 40, 40)]);
    let report = report_of(&training, Some(&validation));
    let found = &report.validation.as_ref().unwrap().findings;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].line), (FindingKind::ConversationInBothFiles, 2));
    // Without names of their own, the same line of both files says nothing.
    let unnamed = |id: &str| (Conversation::new(None, || id.to_owned()).key(), 40, 40);
    let unnamed = ["line-1", "item-2", "conversation-3"].map(unnamed);
    let unnamed = [file(&unnamed), file(&unnamed)];
    assert!(report_of(&unnamed[0], Some(&unnamed[1])).validation.unwrap().findings.is_empty());
    assert_eq!((report.split.by, report.statistics.validation_split), (SplitKind::File, 0.0));
    assert_eq!((report.split.training.examples, report.split.validation.examples), (2, 3));
    assert!(report.warnings().iter().any(|warning| warning.contains("conversation_in_both_files")));
}

#[test]
fn a_validation_file_that_is_wrong_refuses_the_job() {
    let report = report_of(&file(&[(1, 40, 40)]), Some(&file(&[]).find(FindingKind::NothingToTrainOn, [1])));
    assert!(!report.ready);
    assert!(report.refusal(Path::new("r")).unwrap().to_string().contains("nothing_to_train_on"));
}

#[test]
fn warnings_are_short_and_name_what_was_changed() {
    let training = file(&[(1, 100, 90), (1, 40, 40)])
        .find(FindingKind::Duplicate, [5, 6, 7])
        .find(FindingKind::BlankLine, [8])
        .find(FindingKind::RepeatedRole, [9, 10]);
    let mut report = report_of(&training, None);
    assert_eq!(
        report.warnings(),
        [
            "data.jsonl: 1 of 2 examples exceed 90 tokens; their oldest turns were cut (3 turns)",
            "data.jsonl: 3 × duplicate, first in line 5: The same example stands on an earlier line; it is used once.",
            "data.jsonl: used, and worth a look: 2 × repeated_role, 1 × blank_line; see dataset_report.json",
        ]
    );
    report.split.by = SplitKind::None;
    report.template.notes = vec!["the model has none".into()];
    let warnings = report.warnings();
    assert_eq!(warnings[0], "chat template: the model has none");
    assert!(warnings.last().unwrap().contains("a single conversation"));
}

#[test]
fn the_summary_shows_everything_and_ends_with_the_verdict() {
    let training = file(&[(1, 100, 90), (1, 40, 40), (2, 60, 60)]).find(FindingKind::Duplicate, 10..52);
    let text = report_of(&training, None).to_string();
    for part in [
        "Dataset     data.jsonl, 12.1 KiB, format turns, sha256 abababababab…",
        "Template    chat_template.jinja",
        "Examples    3 of 3 lines, 42 left out",
        "Tokens      190, of which 95 are learnt (50.0 %)",
        "Lengths     median 60, 95 % up to 100, longest 100 tokens, before cutting",
        " 97 - 128 | # 1",
        "Cut         1 of 3 examples exceed 90 tokens",
        "Split       2 examples of 1 conversation to learn from, 1 example of 1 conversation to measure with",
        "Packing     on: 1 micro-batch an epoch, 65.0 % of their 200 tokens used, no padding",
        "Steps       3 in all: 1 an epoch of 2 examples each, 3 epochs",
        "  left out, 42 × duplicate: The same example",
        "    line 10: message of line 10\n",
        "    … and 37 more",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let last = text.lines().next_back().unwrap();
    assert!(last.starts_with("Ready       2 examples to learn from"), "{last}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn the_summary_of_a_refused_file_says_so() {
    let report = report_of(&file(&[]).find(FindingKind::InvalidJson, [3]), None);
    let text = report.to_string();
    assert!(text.contains("  fatal, 1 × invalid_json"), "{text}");
    assert!(text.lines().next_back().unwrap().starts_with("Refused     1 fatal finding;"), "{text}");
}
