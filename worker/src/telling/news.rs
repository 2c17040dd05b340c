//! What there is to tell.

use serde_json::Value;

use crate::work::{Answer, Ended};

/// What there is to tell of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    /// How far it is, as `/status` shows it.
    Progress(Value),
    /// How it ended.
    Last(Last),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Last {
    pub(super) end: End,
    pub(super) output: Option<Value>,
    pub(super) error: Option<String>,
    /// Where the operator's store has the archive of its adapter.
    pub(super) archive: Option<String>,
    /// Why it has none.
    pub(super) no_archive: Option<String>,
}

/// The ways to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Failed,
    Cancelled,
}

// === impl Last ===

impl Last {
    /// Nothing where the job goes on elsewhere.
    pub(super) fn of(ended: &Ended) -> Option<Self> {
        let last = |end, output, error| Some(Self { end, output, error, archive: None, no_archive: None });
        match ended {
            Ended::Answered(Answer { output, error: None, .. }) => last(End::Completed, output.clone(), None),
            Ended::Answered(Answer { output, error, .. }) => last(End::Failed, output.clone(), error.clone()),
            Ended::Stopped => last(End::Cancelled, None, None),
            Ended::HandedBack => None,
        }
    }
}
