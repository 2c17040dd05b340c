//! What holds for a conversation whatever its format was.

use serde_json::Value;

use super::notes::{Notes, Place};
use crate::dataset::{
    example::{Body, Conversation, Example, Learnt, Message, Role},
    finding::FindingKind,
};

/// A message and where it comes from.
pub(super) struct Turn {
    pub(super) place: Place,
    pub(super) message: Message,
}

/// An example before it was looked over.
pub(super) struct Draft {
    pub(super) conversation: Option<String>,
    pub(super) turns: Vec<Turn>,
    pub(super) learnt: Learnt,
    pub(super) tools: Value,
}

// === impl Turn ===

impl Turn {
    /// A field of the line that is one message.
    pub(super) fn field(field: &'static str, role: Role, content: String) -> Self {
        Self { place: Place::field(field), message: Message::new(role, content) }
    }

    /// Whether nothing is said and no tool is called.
    fn is_empty(&self) -> bool {
        let silent = self.message.content.as_deref().is_none_or(|content| content.trim().is_empty());
        silent && !self.message.fields.contains_key("tool_calls")
    }

    fn is(&self, role: Role) -> bool {
        self.message.role == role
    }
}

// === impl Draft ===

impl Draft {
    /// The example, unless there is nothing to learn from it.
    pub(super) fn finish(self, notes: &mut Notes<'_>) -> Option<Example> {
        self.find_targets(notes);
        if notes.is_refused() {
            return None;
        }
        self.remark(notes);
        let line = notes.line();
        Some(Example {
            line,
            conversation: Conversation::new(self.conversation, || notes.origin().unnamed(line)),
            body: Body::Messages(self.turns.into_iter().map(|turn| complete(turn.message)).collect()),
            learnt: self.learnt,
            tools: self.tools,
        })
    }

    /// Index of the first turn that is learnt, were there no other role than the assistant's.
    fn first_learnt(&self) -> Option<usize> {
        match self.learnt {
            Learnt::EveryAssistantTurn => self.turns.iter().position(|turn| turn.is(Role::Assistant)),
            Learnt::LastAssistantTurn => self.turns.iter().rposition(|turn| turn.is(Role::Assistant)),
        }
    }

    /// A target that is not there, or empty, leaves the example out: a model that learns to say nothing learns wrong.
    fn find_targets(&self, notes: &mut Notes<'_>) {
        let Some(first) = self.first_learnt() else {
            return notes.skip(FindingKind::NoAssistantTurn, "no turn is the assistant's; the example is left out");
        };
        let targets = self.turns[first..].iter().filter(|turn| turn.is(Role::Assistant));
        if let Some(turn) = targets.into_iter().find(|turn| turn.is_empty()) {
            match turn.message.content {
                None => notes.skip(
                    FindingKind::MissingTarget,
                    format!("{} has no content; the example is left out", turn.place),
                ),
                Some(_) => {
                    notes.skip(FindingKind::EmptyTarget, format!("{} is empty; the example is left out", turn.place))
                }
            }
        }
    }

    fn remark(&self, notes: &mut Notes<'_>) {
        let first = self.first_learnt().unwrap_or(self.turns.len());
        let list = |turns: Vec<&Turn>| {
            let (shown, more) = (turns.iter().take(4), turns.len().saturating_sub(4));
            let text = shown.map(|turn| turn.place.to_string()).collect::<Vec<_>>().join(", ");
            if more == 0 { text } else { format!("{text} and {more} more") }
        };
        let empty = self.turns.iter().enumerate();
        let empty = empty.filter(|(index, turn)| turn.is_empty() && !(*index >= first && turn.is(Role::Assistant)));
        let empty = empty.map(|(_, turn)| turn).collect::<Vec<_>>();
        if !empty.is_empty() {
            notes.keep(FindingKind::EmptyTurn, format!("empty, and kept: {}", list(empty)));
        }
        // Several tools answer one turn, so theirs may follow one another.
        let repeats = self.turns.windows(2).filter(|two| two[0].message.role == two[1].message.role);
        let repeats = repeats.map(|two| &two[1]).filter(|turn| !turn.is(Role::Tool)).collect::<Vec<_>>();
        if !repeats.is_empty() {
            let text = format!("the same speaker as in the turn before, and kept: {}", list(repeats));
            notes.keep(FindingKind::RepeatedRole, text);
        }
        let assistant = self.turns.iter().position(|turn| turn.is(Role::Assistant)).unwrap_or_default();
        if !self.turns[..assistant].iter().any(|turn| turn.is(Role::User)) {
            let text = format!("no user's turn stands before {}; the example is kept", self.turns[assistant].place);
            notes.keep(FindingKind::NoUserTurn, text);
        }
    }
}

/// Content may be absent only beside `tool_calls`; templates that print it would print "None" elsewhere.
fn complete(mut message: Message) -> Message {
    if message.content.is_none() && !message.fields.contains_key("tool_calls") {
        message.content = Some(String::new());
    }
    message
}
