//! Lines of a dataset file as conversations. Two shapes are read, told apart by their keys:
//! `{"conversation_id", "turns": [{"role", "content"}]}` and `{"messages": [{"role", "content"}]}`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use crate::{Error, Result};

/// Longest line that is read.
pub const MAX_LINE_BYTES: u64 = 16 << 20;
/// So many bad lines are spelled out in an error; the rest are counted.
const FINDINGS_SHOWN: usize = 20;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// The client.
    User,
    /// The expert: what is learnt.
    Assistant,
}

impl Role {
    /// The name in ChatML.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The file's `conversation_id`, or `line-N` where it has none.
    pub id: String,
    /// Where it stands in the file, counted from 1.
    pub line: usize,
    /// At least one turn, at least one of them the assistant's.
    pub turns: Vec<Turn>,
}

/// A line's keys; everything else in it is left alone.
#[derive(Deserialize)]
struct Line {
    conversation_id: Option<String>,
    turns: Option<Vec<LineTurn>>,
    messages: Option<Vec<LineTurn>>,
}

#[derive(Deserialize)]
struct LineTurn {
    role: String,
    content: String,
}

/// Reads every conversation of a file. All bad lines end in one error that names them.
pub fn read_conversations(path: &Path) -> Result<Vec<Conversation>> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io("cannot read", path))?);
    let mut conversations = Vec::new();
    let mut findings = Vec::new();
    for number in 1.. {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        if read.map_err(Error::io("cannot read", path))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES && bytes.last() != Some(&b'\n') {
            reader.skip_until(b'\n').map_err(Error::io("cannot read", path))?;
            findings.push(format!("line {number}: longer than {} MiB", MAX_LINE_BYTES >> 20));
            continue;
        }
        match parse_line(&bytes, number) {
            Ok(Some(conversation)) => conversations.push(conversation),
            Ok(None) => {}
            Err(reason) => findings.push(format!("line {number}: {reason}")),
        }
    }
    if !findings.is_empty() {
        return Err(Error::file(path, describe(&findings)));
    }
    if conversations.is_empty() {
        return Err(Error::file(path, "the file has no conversation; one JSON object a line is expected"));
    }
    Ok(conversations)
}

/// All findings in one text, shortened where they are many.
pub(super) fn describe(findings: &[String]) -> String {
    let shown = findings.iter().take(FINDINGS_SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = findings.len().saturating_sub(FINDINGS_SHOWN);
    match (findings.len(), more) {
        (1, _) => shown,
        (count, 0) => format!("{count} bad lines: {shown}"),
        (count, more) => format!("{count} bad lines: {shown}; and {more} more"),
    }
}

/// `Ok(None)` for a blank line.
fn parse_line(bytes: &[u8], number: usize) -> std::result::Result<Option<Conversation>, String> {
    // A byte order mark is how some editors begin a file.
    let bytes = if number == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1))?
        .trim();
    if text.is_empty() {
        return Ok(None);
    }
    let line: Line = serde_json::from_str(text).map_err(|error| json_reason(&error))?;
    let turns = match (line.turns, line.messages) {
        (Some(turns), None) | (None, Some(turns)) => turns,
        (Some(_), Some(_)) => return Err("has both `turns` and `messages`; one of them is expected".into()),
        (None, None) => return Err("has neither `turns` nor `messages`".into()),
    };
    let turns = turns.into_iter().enumerate().map(|(index, turn)| parse_turn(index, turn));
    let turns = turns.collect::<std::result::Result<Vec<_>, _>>()?;
    if !turns.iter().any(|turn| turn.role == Role::Assistant) {
        return Err("has no assistant turn, so there is nothing to learn from it".into());
    }
    let id = line.conversation_id.unwrap_or_else(|| format!("line-{number}"));
    Ok(Some(Conversation { id, line: number, turns }))
}

fn parse_turn(index: usize, turn: LineTurn) -> std::result::Result<Turn, String> {
    let role = match turn.role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            return Err(format!("turn {}: unknown role {other:?}; expected system, user or assistant", index + 1));
        }
    };
    if role == Role::Assistant && turn.content.trim().is_empty() {
        return Err(format!("turn {}: the assistant says nothing", index + 1));
    }
    Ok(Turn { role, content: turn.content })
}

/// serde_json's reason; its line number is always 1 here and would mislead.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    format!("{reason} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Conversation>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, bytes).unwrap();
        read_conversations(&path)
    }

    fn refusal(bytes: &[u8]) -> String {
        read(bytes).unwrap_err().to_string()
    }

    const GOOD: &str =
        r#"{"conversation_id":"a","turns":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}"#;

    #[test]
    fn both_shapes_are_read_and_blank_lines_bom_and_crlf_do_no_harm() {
        let messages =
            r#"{"messages":[{"role":"system","content":"S"},{"role":"assistant","content":"A","x":1}],"y":2}"#;
        let list = read(format!("\u{feff}{GOOD}\r\n\r\n  \n{messages}").as_bytes()).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].id.as_str(), list[0].line, list[0].turns.len()), ("a", 1, 2));
        assert_eq!((list[1].id.as_str(), list[1].line), ("line-4", 4));
        assert_eq!(list[1].turns[0], Turn { role: Role::System, content: "S".into() });
    }

    #[test]
    fn every_bad_line_is_named_in_one_error() {
        let mut bytes = format!(
            "{GOOD}\n{{\n{{\"turns\":[{{\"role\":\"tool\",\"content\":\"\"}}]}}\n{{\"text\":\"x\"}}\n{{\"turns\":[]}}\n{}\n",
            GOOD.replace("\"A\"", "\"  \"")
        )
        .into_bytes();
        bytes.extend_from_slice(b"{\"turns\": \"\xff\"}\n");
        let text = refusal(&bytes);
        for expected in [
            "data.jsonl: 6 bad lines",
            "line 2: EOF",
            "line 3: turn 1: unknown role \"tool\"",
            "line 4: has neither `turns` nor `messages`",
            "line 5: has no assistant turn",
            "line 6: turn 2: the assistant says nothing",
            "line 7: byte 12 of the line is not UTF-8",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in {text:?}");
        }
        assert!(!text.contains("line 1:"), "{text}");
    }

    #[test]
    fn wrong_types_deep_nesting_and_an_empty_file_are_refused() {
        assert!(refusal(br#"{"turns":[{"role":"user"}]}"#).contains("missing field `content`"));
        assert!(refusal(br#"{"turns":7}"#).contains("invalid type"));
        assert!(refusal(&b"[".repeat(100_000)).contains("line 1: "));
        assert!(refusal(b"\n\n").contains("no conversation"));
    }

    #[test]
    fn a_huge_line_is_skipped_over_and_named_and_many_findings_are_shortened() {
        let mut bytes = vec![b'x'; MAX_LINE_BYTES as usize + 2];
        bytes.extend_from_slice(b"\n{}\n");
        let text = refusal(&bytes);
        assert!(text.contains("line 1: longer than 16 MiB; line 2: has neither"), "{text}");
        assert!(refusal(&b"{}\n".repeat(50)).ends_with("and 30 more"));
    }
}
