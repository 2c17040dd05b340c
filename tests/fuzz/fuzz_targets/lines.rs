//! Any bytes as a dataset file: cut into lines or items, and each of them parsed.
#![no_main]

use std::io::{BufReader, Cursor};

use brightrun_trainer::dataset::{finding::Severity, records::Records};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let breaks = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    // A small buffer, so that everything crosses its borders.
    let reader = BufReader::with_capacity(13, Cursor::new(bytes.to_vec()));
    let mut records = Records::from_reader(reader, "fuzz").expect("memory can be read");
    let (mut examples, mut last_line, mut refused) = (0, 0, false);
    while let Some(batch) = records.next_batch(1000).expect("memory can be read") {
        for record in batch {
            assert!(record.line() >= last_line && record.line() <= breaks + 1);
            last_line = record.line();
            let parsed = record.parse();
            assert_eq!(
                parsed.example.is_none(),
                parsed.findings.iter().any(|finding| finding.severity() < Severity::Kept)
            );
            examples += u64::from(parsed.example.is_some());
        }
    }
    for finding in records.findings() {
        assert!((1..=breaks + 1).contains(&finding.line));
        refused |= finding.severity() == Severity::Fatal;
    }
    assert!(examples <= records.lines());
    assert!(records.lines() > 0 || refused, "a file that holds nothing must say so");
    assert!(examples == 0 || records.format().is_some());
});
