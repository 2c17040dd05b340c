use std::{
    cell::{Cell, RefCell},
    fs,
    path::PathBuf,
};

use super::*;
use crate::dataset::encode::testing::write_tokenizer;

/// A model, a cache and a dataset file.
struct Setup {
    folder: tempfile::TempDir,
    options: PrepareOptions,
}

const OPTIONS: PrepareOptions = PrepareOptions { max_length: 64, train_on_prompt: false, learn_every_turn: false };

fn unwatched(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

// === impl Setup ===

impl Setup {
    fn new(lines: &[String]) -> Self {
        let setup = Self { folder: tempfile::tempdir().unwrap(), options: OPTIONS };
        fs::create_dir(setup.path("model")).unwrap();
        write_tokenizer(&setup.path("model"));
        setup.write(lines);
        setup
    }

    fn write(&self, lines: &[String]) {
        fs::write(self.path("data.jsonl"), lines.concat()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn prepare_with(&self, cache: &str, progress: Progress, threads: usize) -> Result<Prepared> {
        let (file, model) = (self.path("data.jsonl"), TextModel::load(&self.path("model"))?);
        prepare_with_threads(&file, &model, &self.options, &self.path(cache), progress, threads)
    }

    fn prepare(&self) -> Prepared {
        self.prepare_with("cache", &unwatched, 2).unwrap()
    }

    /// The names and bytes of all files of the only store in a cache.
    fn store_bytes(&self, cache: &str) -> Vec<(String, Vec<u8>)> {
        let folders: Vec<PathBuf> =
            fs::read_dir(self.path(cache)).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [folder] = &folders[..] else { panic!("{folders:?}") };
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<(String, Vec<u8>)> =
            files.map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read(&path).unwrap())).collect();
        files.sort();
        files
    }
}

fn line(id: &str, turns: &[&str]) -> String {
    let role = |index: usize| if index.is_multiple_of(2) { "user" } else { "assistant" };
    let turns = turns.iter().enumerate().map(|(i, text)| serde_json::json!({"role": role(i), "content": text}));
    serde_json::json!({"conversation_id": id, "messages": turns.collect::<Vec<_>>()}).to_string() + "\n"
}

fn kinds(prepared: &Prepared) -> Vec<(FindingKind, u64)> {
    prepared.facts.findings.iter().map(|finding| (finding.kind, finding.line)).collect()
}

/// Lines enough for many batches: short ones, long ones, doubled ones, with unicode.
fn many_lines() -> Vec<String> {
    let answer = |i: usize| format!("Answer {i}: {}", "die Kette läuft 日本 🚲 ".repeat(1 + i % 13));
    let whole = |i: usize| line(&format!("c{}", i / 3), &["Warum?", &answer(i), "And then?", &answer(i % 997)]);
    (0..9000).map(whole).collect()
}

#[test]
fn sums_are_those_of_the_documents() {
    let setup = Setup::new(&[
        line("a", &["Q", "First."]),
        line("a", &["Q", "First.", "And?", "Second."]),
        "\n".into(),
        line("b", &["Why?", "Because."]),
        line("b", &["Why?", "Because."]),
        line("c", &["Q", &"far too long ".repeat(80)]),
        line("d", &[&"a question without an end ".repeat(20), "Short."]),
    ]);
    let prepared = setup.prepare();
    assert!(!prepared.reused && !is_fatal(&prepared) && prepared.notes.is_empty());
    let documents = prepared.store.documents();
    assert_eq!(documents.iter().map(|document| document.line).collect::<Vec<_>>(), [1, 2, 4, 7]);
    assert_eq!(documents[0].conversation, documents[1].conversation);
    assert_ne!(documents[0].conversation, documents[2].conversation);
    let facts = &prepared.facts;
    assert_eq!((facts.lines, facts.examples, facts.conversations), (6, 4, 3));
    assert_eq!((facts.turns, facts.learnt_turns, facts.cut_turns), (4 + 2 + 2, 5, 1));
    assert_eq!(facts.tokens, documents.iter().map(|document| u64::from(document.tokens)).sum::<u64>());
    assert_eq!(facts.target_tokens, documents.iter().map(|document| u64::from(document.targets)).sum::<u64>());
    assert_eq!(facts.bytes, fs::metadata(setup.path("data.jsonl")).unwrap().len());
    assert_eq!(facts.sha256, hex::encode(Sha256::digest(fs::read(setup.path("data.jsonl")).unwrap())));
    assert_eq!(facts.format, "openai");
    let found = kinds(&prepared);
    for expected in [(FindingKind::TargetTooLong, 6), (FindingKind::Duplicate, 5), (FindingKind::HistoryCut, 7)] {
        assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
    }
    let duplicate = facts.findings.iter().find(|finding| finding.kind == FindingKind::Duplicate).unwrap();
    assert!(duplicate.message.contains("on line 4;"), "{}", duplicate.message);
    let model = TextModel::load(&setup.path("model")).unwrap();
    let sequence = prepared.store.sequence(1).unwrap();
    let learnt = sequence.labels.iter().filter(|label| **label >= 0).map(|label| *label as u32);
    assert_eq!(model.decode(learnt), "First.<|im_end|>\nSecond.<|im_end|>\n");
    assert_eq!(documents[1].targets as usize, sequence.labels[1..].iter().filter(|label| **label >= 0).count());
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let setup = Setup::new(&many_lines());
    let one = setup.prepare_with("one", &unwatched, 1).unwrap();
    assert!(one.facts.bytes > 4 << 20 && one.facts.findings.count(FindingKind::Duplicate) > 0, "{}", one.facts.bytes);
    for threads in [2, 7] {
        let many = setup.prepare_with(&threads.to_string(), &unwatched, threads).unwrap();
        assert_eq!(many.facts, one.facts);
        assert!(setup.store_bytes(&threads.to_string()) == setup.store_bytes("one"));
    }
    // Lines of findings ascend within a kind, so they were taken in order.
    let lines =
        |kind| one.facts.findings.iter().filter(move |finding| finding.kind == kind).map(|finding| finding.line);
    for kind in [FindingKind::HistoryCut, FindingKind::TargetTooLong, FindingKind::Duplicate] {
        assert!(lines(kind).is_sorted());
    }
}

#[test]
fn a_second_time_nothing_is_tokenised() {
    let setup = Setup::new(&many_lines());
    let first = setup.prepare();
    let reports = Cell::new(0);
    let count = |read: u64, _: u64| {
        reports.set(reports.get() + u64::from(read > 0));
        ControlFlow::Continue(())
    };
    let second = setup.prepare_with("cache", &count, 2).unwrap();
    assert!(second.reused && !first.reused);
    assert_eq!(reports.get(), 0, "no batch was taken");
    assert_eq!((second.facts, second.store.documents()), (first.facts, first.store.documents()));
    // Other options, another file, another tokenizer: another store each.
    let mut setup = setup;
    for change in [
        |setup: &mut Setup| setup.options.max_length = 63,
        |setup: &mut Setup| setup.options.train_on_prompt = true,
        |setup: &mut Setup| setup.options.learn_every_turn = true,
        |setup: &mut Setup| setup.write(&many_lines()[1..]),
        |setup: &mut Setup| {
            let path = setup.path("model").join("tokenizer.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text + "\n").unwrap();
        },
    ] {
        change(&mut setup);
        assert!(!setup.prepare().reused);
        assert!(setup.prepare().reused);
    }
    assert_eq!(fs::read_dir(setup.path("cache")).unwrap().count(), 6);
}

#[test]
fn a_damaged_store_is_made_anew_and_that_is_said() {
    let setup = Setup::new(&[line("a", &["Q", "A"])]);
    setup.prepare();
    let before = setup.store_bytes("cache");
    let folder = fs::read_dir(setup.path("cache")).unwrap().next().unwrap().unwrap().path();
    fs::write(folder.join("tokens.bin"), "damaged").unwrap();
    let prepared = setup.prepare();
    assert!(!prepared.reused);
    assert!(prepared.notes[0].contains("tokens.bin"), "{:?}", prepared.notes);
    assert!(setup.store_bytes("cache") == before);
    assert!(setup.prepare().reused);
}

fn is_fatal(prepared: &Prepared) -> bool {
    prepared.facts.findings.count_of(Severity::Fatal) > 0
}

#[test]
fn a_fatal_file_has_facts_and_no_store() {
    let mut lines: Vec<String> = (0..9).map(|i| line("a", &["Q", &format!("A{i}")])).collect();
    for (at, broken) in [(2, "{\"messages\": \n"), (4, "nonsense\n"), (5, "{\n"), (6, "[\n"), (7, "x\n"), (8, "y\n")] {
        lines[at] = broken.into();
    }
    let setup = Setup::new(&lines);
    let prepared = setup.prepare();
    assert_eq!(prepared.facts.findings.count_of(Severity::Fatal), 6);
    assert_eq!(prepared.facts.examples, 3);
    assert!(prepared.store.documents().is_empty());
    assert_eq!(fs::read_dir(setup.path("cache")).unwrap().count(), 0);
}

#[test]
fn a_file_of_which_nothing_is_left_is_fatal_too() {
    let setup = Setup::new(&[line("a", &["Q", &"far too long ".repeat(80)])]);
    let prepared = setup.prepare();
    let mut fatal = prepared.facts.findings.iter().filter(|finding| finding.severity() == Severity::Fatal);
    let text = &fatal.next().unwrap().message;
    assert!(
        text.starts_with("every example was left out, the first, on line 1, because: the last answer has"),
        "{text}"
    );
    assert!(fatal.next().is_none());
    assert!(kinds(&prepared).contains(&(FindingKind::TargetTooLong, 1)));
    assert!(is_fatal(&Setup::new(&[]).prepare()));
}

#[test]
fn progress_grows_to_the_whole_and_can_stop_the_work() {
    let setup = Setup::new(&many_lines());
    let bytes = fs::metadata(setup.path("data.jsonl")).unwrap().len();
    let seen = RefCell::new(Vec::new());
    let watch = |read, all| {
        seen.borrow_mut().push((read, all));
        ControlFlow::Continue(())
    };
    setup.prepare_with("cache", &watch, 2).unwrap();
    let seen = seen.into_inner();
    assert!(seen.is_sorted() && seen.iter().all(|(_, all)| *all == bytes));
    assert_eq!(seen.last(), Some(&(bytes, bytes)));

    for stop_at in [0, 1, bytes / 2] {
        let stop = |read, _| if read >= stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let error = setup.prepare_with("stopped", &stop, 2).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
    }
    // What was begun is gone.
    let left = fs::read_dir(setup.path("stopped")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let setup = Setup::new(&many_lines());
    let path = setup.path("data.jsonl");
    let append = |read: u64, _: u64| {
        if read > 0 {
            let mut bytes = fs::read(&path).unwrap();
            bytes.extend_from_slice(line("late", &["Q", "A"]).as_bytes());
            fs::write(&path, bytes).unwrap();
        }
        ControlFlow::Continue(())
    };
    let error = setup.prepare_with("cache", &append, 2).unwrap_err().to_string();
    assert!(error.contains("changed while it was read"), "{error}");
}

#[test]
fn unusable_model_files_and_options_are_errors() {
    let mut setup = Setup::new(&[line("a", &["Q", "A"])]);
    setup.options.max_length = 1;
    assert!(setup.prepare_with("cache", &unwatched, 1).unwrap_err().to_string().contains("max_seq_length"));
    setup.options.max_length = 64;
    fs::remove_file(setup.path("data.jsonl")).unwrap();
    assert!(setup.prepare_with("cache", &unwatched, 1).unwrap_err().to_string().contains("data.jsonl"));
    fs::write(setup.path("model").join("tokenizer.json"), "{}").unwrap();
    assert!(setup.prepare_with("cache", &unwatched, 1).unwrap_err().to_string().contains("tokenizer.json"));
}
