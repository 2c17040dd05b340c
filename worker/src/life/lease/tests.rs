use std::process::{Command, Stdio};

use tempfile::{TempDir, tempdir};

use super::*;

fn quick() -> LeaseTimes {
    // Silence is so long that nobody is silent because the machine is busy.
    LeaseTimes { beat: Duration::from_millis(20), silence: Duration::from_secs(2), look: Duration::from_millis(5) }
}

fn claim(folder: &TempDir, holder: &str) -> Result<Lease, LeaseError> {
    Lease::claim(folder.path(), holder, &quick(), &|| false)
}

/// The lease of a worker of another machine, which says nothing more.
fn silent(folder: &TempDir, number: u64, released: bool) {
    let note = Note { holder: "far".into(), process: None, beat: 7, released };
    make(folder.path(), number, &note).unwrap();
}

#[test]
fn a_job_that_is_worked_on_is_not_begun_twice() {
    let folder = tempdir().unwrap();
    let first = claim(&folder, "one").unwrap();
    let refused = claim(&folder, "two").err().unwrap();
    assert!(matches!(&refused, LeaseError::Taken { holder } if holder == "one"), "{refused}");
    assert!(first.holds());
}

#[test]
fn a_job_that_is_done_with_is_free_at_once() {
    let folder = tempdir().unwrap();
    for holder in ["one", "two", "three"] {
        let begin = Instant::now();
        let lease = claim(&folder, holder).unwrap();
        assert!(lease.holds() && begin.elapsed() < quick().silence);
    }
    assert_eq!(numbers(folder.path()).unwrap(), [3]);
}

#[test]
fn a_silent_worker_loses_its_job_and_sees_that_it_has() {
    let folder = tempdir().unwrap();
    let frozen = Shared {
        folder: folder.path().to_owned(),
        number: 1,
        note: Mutex::new(Note { holder: "frozen".into(), process: None, beat: 0, released: false }),
        lost: AtomicBool::new(false),
        over: Mutex::new(false),
        ends: Condvar::new(),
    };
    make(folder.path(), 1, &lock(&frozen.note)).unwrap();
    assert!(frozen.holds());
    let begin = Instant::now();
    let next = claim(&folder, "next").unwrap();
    assert!(begin.elapsed() >= quick().silence);
    assert!(next.holds() && !frozen.holds());
    // It comes back, and leaves nothing that anybody would believe.
    frozen.write(|note| note.beat += 1).unwrap();
    assert!(next.holds() && !frozen.holds());
    assert!(matches!(claim(&folder, "third"), Err(LeaseError::Taken { .. })));
}

#[test]
fn of_many_only_one_takes_a_job_over() {
    for begun in [false, true] {
        let folder = tempdir().unwrap();
        if begun {
            silent(&folder, 41, true);
        }
        let claims = thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|number| {
                    scope.spawn({
                        let folder = &folder;
                        move || claim(folder, &number.to_string())
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        let holders = claims.iter().flatten().filter(|lease| lease.holds()).count();
        assert_eq!((holders, claims.iter().flatten().count()), (1, 1));
    }
}

#[test]
fn a_killed_process_of_this_machine_is_not_waited_for() {
    let folder = tempdir().unwrap();
    let mut child = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn().unwrap();
    let process = Process { number: child.id(), began: began(child.id()).unwrap(), ..Process::own().unwrap() };
    assert!(!process.is_gone());
    let note = Note { holder: "killed".into(), process: Some(process.clone()), beat: 0, released: false };
    make(folder.path(), 1, &note).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(process.is_gone());
    let patient = LeaseTimes { silence: Duration::from_secs(3600), ..quick() };
    assert!(Lease::claim(folder.path(), "next", &patient, &|| false).unwrap().holds());
    // Elsewhere the same number says nothing.
    assert!(!Process { boot: "another".into(), ..process }.is_gone());
}

#[test]
fn waiting_ends_when_nobody_wants_it_any_more() {
    let folder = tempdir().unwrap();
    silent(&folder, 1, false);
    assert!(matches!(Lease::claim(folder.path(), "x", &quick(), &|| true), Err(LeaseError::Cancelled)));
}

#[test]
fn damaged_leases_are_waited_for_like_silent_ones() {
    let folder = tempdir().unwrap();
    fs::write(path(folder.path(), 1), "{\"hol").unwrap();
    assert!(claim(&folder, "next").unwrap().holds());
}

#[test]
fn a_volume_that_is_not_there_is_named() {
    let folder = tempdir().unwrap();
    let error = Lease::claim(&folder.path().join("no"), "x", &quick(), &|| false).err().unwrap();
    assert!(matches!(error, LeaseError::Volume { .. }), "{error}");
}
