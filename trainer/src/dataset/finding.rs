//! What is worth saying about a line of a dataset.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a finding does to the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file is not what its owner meant; nothing is trained.
    Fatal,
    /// The example is left out.
    Skipped,
    /// The example is used, changed or not, as the message says.
    Kept,
}

/// Every kind of finding. One line each: variant, severity, name in reports, meaning for the documentation.
macro_rules! finding_kinds {
    ($($variant:ident, $severity:ident, $name:literal, $meaning:literal;)*) => {
        /// A kind of finding.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FindingKind {
            $(#[doc = $meaning] $variant,)*
        }

        impl FindingKind {
            /// All kinds, fatal ones first.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What it does to the job.
            pub fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// The name in `dataset_report.json`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The kind of that name.
            pub fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// What it means and what is done about it.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

finding_kinds! {
    NothingToTrainOn, Fatal, "nothing_to_train_on", "The file holds no example that can be trained on.";
    UnknownFormat, Fatal, "unknown_format", "The line has none of the known shapes.";
    MixedFormats, Fatal, "mixed_formats", "The line has another shape than the lines before it.";
    InvalidUtf8, Fatal, "invalid_utf8", "The line is not UTF-8.";
    InvalidJson, Fatal, "invalid_json", "The line is not one JSON object.";
    TruncatedLastLine, Fatal, "truncated_last_line", "The file ends in the middle of a JSON object: it was cut off.";
    HugeLine, Fatal, "huge_line", "The line is longer than the limit.";
    WrongShape, Fatal, "wrong_shape", "A field is missing or has another type than its format says.";
    UnknownRole, Fatal, "unknown_role", "A turn has a role that is none of system, user, assistant and tool.";
    MissingTarget, Skipped, "missing_target", "The answer to be learnt is null or absent; the pair is left out.";
    EmptyTarget, Skipped, "empty_target", "The answer to be learnt is empty or white space; the example is left out.";
    NoAssistantTurn, Skipped, "no_assistant_turn", "Nobody answers, so there is nothing to learn; the example is left out.";
    TargetTooLong, Skipped, "target_too_long", "The answer alone exceeds max_seq_length; answers are never cut, so the example is left out.";
    TemplateRefused, Skipped, "template_refused", "The model's chat template refuses the conversation; the example is left out.";
    Duplicate, Skipped, "duplicate", "The same example stands on an earlier line; it is used once.";
    HistoryCut, Kept, "history_cut", "The example exceeds max_seq_length; the oldest turns were cut, the answer was not.";
    TextSplit, Kept, "text_split", "The text exceeds max_seq_length; it became several documents, nothing was dropped.";
    RepeatedRole, Kept, "repeated_role", "Two turns in a row have the same speaker; both are kept.";
    EmptyTurn, Kept, "empty_turn", "A turn that is not learnt is empty; it is kept.";
    NoUserTurn, Kept, "no_user_turn", "An assistant's turn has no user's turn before it; it is kept.";
    InputNotInHistory, Kept, "input_not_in_history", "The history does not end with the current input; it was added.";
    PairCountDiffers, Kept, "pair_count_differs", "The file's own count of pairs is not the number of its pairs.";
    ByteOrderMark, Kept, "byte_order_mark", "The file begins with a byte order mark; it is ignored.";
    CarriageReturns, Kept, "carriage_returns", "Lines end with a carriage return and a line feed; reported once.";
    BlankLine, Kept, "blank_line", "The line is blank; it is ignored.";
    ConversationInBothFiles, Kept, "conversation_in_both_files", "A conversation of the validation file is also in the training file.";
}

impl Serialize for FindingKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for FindingKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| serde::de::Error::custom(format!("there is no finding {name:?}")))
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind it is.
    pub kind: FindingKind,
    /// The line, counted from 1 (in a file that is one JSON value: the line on which the item begins).
    pub line: u64,
    /// What was found and what is done about it or would be right; without the line.
    pub message: String,
}

impl Finding {
    /// A finding about a line.
    pub fn new(kind: FindingKind, line: u64, message: impl Into<String>) -> Self {
        Self { kind, line, message: message.into() }
    }

    /// What it does to the job.
    pub fn severity(&self) -> Severity {
        self.kind.severity()
    }
}

/// So many findings of one kind are kept with line and text; the rest are counted.
pub const KEPT_PER_KIND: usize = 1000;

/// The findings of a file: counts of all, the text of the first of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    kinds: BTreeMap<FindingKind, KindFindings>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct KindFindings {
    count: u64,
    first: Vec<Finding>,
}

impl Findings {
    /// Adds one.
    pub fn push(&mut self, finding: Finding) {
        let entry = self.kinds.entry(finding.kind).or_default();
        entry.count += 1;
        if entry.first.len() < KEPT_PER_KIND {
            entry.first.push(finding);
        }
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: FindingKind) -> u64 {
        self.kinds.get(&kind).map_or(0, |entry| entry.count)
    }

    /// How many there are of a severity.
    pub fn count_of(&self, severity: Severity) -> u64 {
        self.kinds.iter().filter(|(kind, _)| kind.severity() == severity).map(|(_, entry)| entry.count).sum()
    }

    /// Counts per kind, fatal kinds first.
    pub fn counts(&self) -> impl Iterator<Item = (FindingKind, u64)> + '_ {
        self.kinds.iter().map(|(kind, entry)| (*kind, entry.count))
    }

    /// The kept findings, fatal kinds first, in the order of lines within a kind.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> + '_ {
        self.kinds.values().flat_map(|entry| &entry.first)
    }
}
