//! Any bytes as one line: its format is told and it is parsed.
#![no_main]

use brightrun_trainer::dataset::{
    example::{Body, Role},
    finding::Severity,
    records::Record,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let parsed = Record::of_line(1, bytes).parse();
    let refused = parsed.findings.iter().any(|finding| finding.severity() < Severity::Kept);
    let Some(example) = parsed.example else {
        assert!(refused, "a line without an example must say why");
        return;
    };
    assert!(!refused, "{:?}", parsed.findings);
    match example.body {
        Body::Text(text) => assert!(!text.trim().is_empty()),
        Body::Messages(messages) => {
            let last = messages.iter().rfind(|message| message.role == Role::Assistant).expect("somebody answers");
            let says = last.content.as_deref().is_some_and(|content| !content.trim().is_empty());
            assert!(says || last.fields.contains_key("tool_calls"));
        }
    }
});
