//! Every operation of a save fails once, or is the last one before the process or the machine dies.

use super::{
    simulated::{Data, Names, Plan},
    *,
};

/// A run that keeps one checkpoint: the best one is that of step 10, the newest that of step 20. Saving the next one,
/// which is better, removes both.
fn before(subject: &mut Subject) -> Simulated {
    let storage = Simulated::new();
    let mut checkpoints = open(&storage, 1);
    save(&mut checkpoints, subject.captured(10).best()).unwrap();
    save(&mut checkpoints, subject.captured(20)).unwrap();
    storage
}

/// Operations of the next save.
fn operations(storage: &Simulated, subject: &mut Subject) -> usize {
    let storage = storage.copy();
    let mut checkpoints = open(&storage, 1);
    storage.follow(Plan::Work);
    save(&mut checkpoints, subject.captured(30).best()).unwrap();
    storage.operations()
}

/// Nothing but whole checkpoints is there, and the next save works.
fn check(storage: &Simulated, subject: &mut Subject, newest: &[u64]) -> u64 {
    let mut checkpoints = open(storage, 1);
    assert!(steps(storage).iter().all(|name| name.starts_with("step-")), "{:?}", steps(storage));
    let entries = checkpoints.folder.entries().clone();
    for entry in &entries {
        assert!(checkpoints.folder.examine(entry, &settings()).is_ok(), "{} is not whole", entry.name());
    }
    let latest = found(checkpoints.latest().unwrap());
    assert!(newest.contains(&latest.step), "{} is none of {newest:?}", latest.step);
    subject.assert_restores(&latest);
    let best = found(checkpoints.best().unwrap());
    assert_eq!(best.step, if latest.step == 20 { 10 } else { 30 });
    subject.assert_restores(&best);
    save(&mut checkpoints, subject.captured(40)).unwrap();
    subject.assert_restores(&found(checkpoints.latest().unwrap()));
    latest.step
}

#[test]
fn a_death_at_any_operation_leaves_the_old_or_the_new_one() {
    let mut subject = Subject::new(OptimizerKind::AdamW8bit);
    let start = before(&mut subject);
    let count = operations(&start, &mut subject);
    assert!(count > 40, "{count}");
    let mut seen = Vec::new();
    for at in 0..=count {
        let storage = start.copy();
        let mut checkpoints = open(&storage, 1);
        storage.follow(Plan::Kill(at));
        let ended = save(&mut checkpoints, subject.captured(30).best());
        let newest: &[u64] = if ended.is_ok() { &[30] } else { &[20, 30] };
        for data in [Data::Kept, Data::Empty, Data::Half, Data::Zeros] {
            for names in [Names::All, Names::None, Names::Some(1), Names::Some(2), Names::Some(at as u64 + 3)] {
                seen.push(check(&storage.crash(data, names), &mut subject, newest));
            }
        }
    }
    assert!(seen.contains(&20) && seen.contains(&30));
    assert_eq!(seen.last(), Some(&30));
}

#[test]
fn a_death_while_leftovers_are_cleared_away_harms_nothing() {
    let mut subject = Subject::new(OptimizerKind::AdamW);
    let start = before(&mut subject);
    let mut checkpoints = open(&start, 1);
    start.follow(Plan::Kill(operations(&start, &mut subject) / 4));
    save(&mut checkpoints, subject.captured(30)).unwrap_err();
    let left = start.crash(Data::Kept, Names::All);
    assert!(steps(&left).iter().any(|name| name.ends_with(".tmp")));
    for at in 0..10 {
        let storage = left.copy();
        storage.follow(Plan::Kill(at));
        let settings = settings();
        let (_, notes) = Checkpoints::open(Path::new(RUN), 1, settings, Arc::new(storage.clone())).unwrap();
        assert!(notes.iter().all(|note| note.contains("interrupted save")), "{notes:?}");
        for names in [Names::All, Names::None, Names::Some(at as u64)] {
            assert_eq!(check(&storage.crash(Data::Empty, names), &mut subject, &[20]), 20);
        }
    }
}

#[test]
fn an_error_at_any_operation_is_told_and_leaves_the_old_one() {
    let mut subject = Subject::new(OptimizerKind::AdamW);
    let start = before(&mut subject);
    let count = operations(&start, &mut subject);
    let (mut failed, mut unremoved) = (0, 0);
    for plan in (0..count).flat_map(|at| [Plan::FailOnce(at), Plan::FullFrom(at)]) {
        let storage = start.copy();
        let mut checkpoints = open(&storage, 1);
        storage.follow(plan);
        let ended = save(&mut checkpoints, subject.captured(30).best());
        storage.follow(Plan::Work);
        match ended {
            Ok(saved) => {
                unremoved += saved.notes.len();
                assert!(saved.notes.iter().all(|note| note.contains("old checkpoint")), "{:?}", saved.notes);
                check(&storage, &mut subject, &[30]);
            }
            Err(error) => {
                failed += 1;
                assert!(error.is_full() && error.step == 30);
                let text = error.to_string();
                assert!(text.contains("step 30 was not saved") && text.contains("Make room"), "{text}");
                // Except where only the new name is not known to be durable, nothing of it is left, and the run goes on.
                if steps(&storage) != ["step-00000010", "step-00000020", "step-00000030"] {
                    assert_eq!(steps(&storage), ["step-00000010", "step-00000020"], "{plan:?}");
                }
                save(&mut checkpoints, subject.captured(30).best()).unwrap();
                check(&storage, &mut subject, &[30]);
            }
        }
    }
    assert!(failed > 20 && unremoved > 5, "{failed} {unremoved}");
}

#[test]
fn a_failed_save_is_told_before_the_next_one_and_does_not_stop_it() {
    let (storage, mut subject) = (Simulated::new(), Subject::new(OptimizerKind::AdamW));
    let mut checkpoints = open(&storage, 1);
    storage.follow(Plan::FailOnce(3));
    assert!(checkpoints.save(subject.captured(1)).is_empty());
    let ended = checkpoints.save(subject.captured(2));
    assert_eq!(ended.into_iter().map(|ended| ended.unwrap_err().step).collect::<Vec<_>>(), [1]);
    assert_eq!(checkpoints.finish().into_iter().map(|ended| ended.unwrap().step).collect::<Vec<_>>(), [2]);
    subject.assert_restores(&found(checkpoints.latest().unwrap()));
}
