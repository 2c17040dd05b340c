//! Conversations that are too long lose their oldest turns.
//!
//! Whole turns go, from the left, until the rest fits; what is kept begins with a user's turn. Leading system turns stay
//! as long as anything can be kept with them, then they go; then all history does. The last assistant turn, the target,
//! is never cut, and turns after it are the first to go. Every form is rendered by the template and measured, because the
//! lengths of turns do not add up in general. Forms are tried in steps that double from the short end, so that the work is
//! in proportion to what is kept and not to what was there.

use std::ops::Range;

use serde_json::Value;

use super::{Encoder, LEARNT, Turns, Workspace};
use crate::{
    Error, Result,
    dataset::{
        example::{Learnt, Message, Role},
        finding::FindingKind,
        template::{Rendered, TemplateError, TurnSpan, learnt_tokens},
    },
};

/// What was kept of a conversation and, if not all, what was cut; or why it is left out.
pub(super) type Fit = std::result::Result<(Turns, Option<String>), (FindingKind, String)>;

/// One form of a conversation, tokenised.
struct Form {
    /// Tokens with their marks.
    tokens: Vec<u32>,
    learnt_turns: u32,
}

/// A conversation and everything that forms of it have in common.
struct Search<'a, 'b> {
    encoder: &'a Encoder<'b>,
    messages: &'a [Message],
    tools: &'a Value,
    learnt: Learnt,
    workspace: &'a mut Workspace,
    /// Tokens of the shortest form that the template accepted.
    shortest: usize,
}

/// A form that fits: where its history begins, and whether the leading system turns are in it.
struct Kept {
    form: Form,
    system: bool,
    start: usize,
}

/// The longest form of a conversation that is no longer than the limit.
pub(super) fn fit(
    encoder: &Encoder,
    messages: &[Message],
    tools: &Value,
    learnt: Learnt,
    workspace: &mut Workspace,
) -> Result<Fit> {
    let limit = encoder.options.max_length;
    let mut search = Search { encoder, messages, tools, learnt, workspace, shortest: usize::MAX };
    let whole = match search.form(messages)? {
        Ok(form) => form,
        Err(reason) => return Ok(Err((FindingKind::TemplateRefused, reason))),
    };
    let whole_tokens = whole.tokens.len();
    if whole_tokens <= limit {
        let Form { tokens, learnt_turns } = whole;
        return Ok(Ok((Turns { tokens, learnt_turns, cut_turns: 0, whole_tokens }, None)));
    }
    drop(whole);
    let Some(target) = messages.iter().rposition(|message| message.role == Role::Assistant) else {
        return Ok(Err((FindingKind::NoAssistantTurn, "nobody answers, so there is nothing to learn".into())));
    };
    let Some(kept) = search.longest(target, limit)? else {
        let needed = search.shortest;
        let reason = format!(
            "the last answer has {needed} tokens even without history, and max_seq_length is {limit}; the example is \
             left out; max_seq_length {needed} would keep it"
        );
        return Ok(Err((FindingKind::TargetTooLong, reason)));
    };
    let system = leading_system(messages);
    let kept_turns = target + 1 - kept.start + if kept.system { system } else { 0 };
    let cut_turns = messages.len() - kept_turns;
    let text = describe(whole_tokens, limit, kept.form.tokens.len(), cut_turns, system > 0 && !kept.system);
    let Form { tokens, learnt_turns } = kept.form;
    Ok(Ok((Turns { tokens, learnt_turns, cut_turns: cut_turns as u32, whole_tokens }, Some(text))))
}

// === impl Search ===

impl Search<'_, '_> {
    /// The longest form that fits. What may be kept is tried in this order: history from a user's turn on with the system
    /// turns, the same without them; history from an answer on, at the least the target, with them and without.
    fn longest(&mut self, target: usize, limit: usize) -> Result<Option<Kept>> {
        let system = leading_system(self.messages);
        let has_tail = target + 1 < self.messages.len();
        let role = |at: &usize| self.messages[*at].role;
        let users: Vec<usize> = (system..target).filter(|at| *at == system || role(at) == Role::User).collect();
        let answers: Vec<usize> = (system..=target).filter(|at| role(at) == Role::Assistant).collect();
        // With everything from the first turn to the last it is the whole conversation, which is too long.
        let shorter = if has_tail || users.is_empty() { &users[..] } else { &users[1..] };
        let forms = [(shorter, true), (&users, false), (&answers, true), (&answers, false)];
        for (starts, with_system) in forms.into_iter().filter(|(_, with_system)| *with_system || system > 0) {
            if let Some(kept) = self.first_that_fits(starts, target, with_system, limit)? {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    /// The form with the earliest of the starts (they ascend) that fits: doubling steps back from the last one, then
    /// halving between the best that fits and the next that does not.
    fn first_that_fits(
        &mut self,
        starts: &[usize],
        target: usize,
        with_system: bool,
        limit: usize,
    ) -> Result<Option<Kept>> {
        let Some(last) = starts.len().checked_sub(1) else { return Ok(None) };
        let Some(mut best) = self.try_start(starts[last], target, with_system, limit)? else { return Ok(None) };
        // starts[fits] fits; starts[..=too_long] are taken not to.
        let (mut fits, mut too_long) = (last, None);
        let mut step = 1;
        while fits > 0 && too_long.is_none() {
            let at = fits.saturating_sub(step);
            match self.try_start(starts[at], target, with_system, limit)? {
                Some(kept) => (best, fits) = (kept, at),
                None => too_long = Some(at),
            }
            step *= 2;
        }
        while let Some(at) = too_long.map(|long| long + (fits - long) / 2)
            && Some(at) != too_long
        {
            match self.try_start(starts[at], target, with_system, limit)? {
                Some(kept) => (best, fits) = (kept, at),
                None => too_long = Some(at),
            }
        }
        Ok(Some(best))
    }

    fn try_start(&mut self, start: usize, target: usize, with_system: bool, limit: usize) -> Result<Option<Kept>> {
        let system = if with_system { &self.messages[..leading_system(self.messages)] } else { &[] };
        let messages = [system, &self.messages[start..=target]].concat();
        // A form that the template refuses is no form.
        let Ok(form) = self.form(&messages)? else { return Ok(None) };
        Ok((form.tokens.len() <= limit).then_some(Kept { form, system: with_system, start }))
    }

    /// Renders, tokenises and marks; the inner error is the template's reason to refuse.
    fn form(&mut self, messages: &[Message]) -> Result<std::result::Result<Form, String>> {
        let (text, spans) = match self.render(messages) {
            Ok(rendered) => rendered,
            Err(TemplateError::Refused(reason)) => return Ok(Err(reason)),
            Err(TemplateError::Broken(reason) | TemplateError::NoSpans(reason)) => return Err(Error::Invalid(reason)),
        };
        let workspace = &mut *self.workspace;
        self.encoder.tokenizer.encode(&text, &mut workspace.words, &mut workspace.tokens)?;
        let learnt = learnt_tokens(&workspace.tokens.bytes, &spans);
        let marked = workspace.tokens.ids.iter().zip(learnt).map(|(id, learnt)| if learnt { id | LEARNT } else { *id });
        let form = Form { tokens: marked.collect(), learnt_turns: self.learnt_turns(messages) };
        self.shortest = self.shortest.min(form.tokens.len());
        Ok(Ok(form))
    }

    /// The text of a form and the bytes of it that are learnt.
    fn render(&self, messages: &[Message]) -> std::result::Result<(String, Vec<Range<usize>>), TemplateError> {
        if self.encoder.options.train_on_prompt {
            // Nobody's turns need to be found then, so any template will do.
            let text = self.encoder.template.training_text(messages, self.tools, false)?;
            let whole = 0..text.len();
            return Ok((text, vec![whole]));
        }
        let Rendered { text, turns } = self.encoder.template.render_for_training(messages, self.tools)?;
        let last = messages.iter().rposition(|message| message.role == Role::Assistant);
        let is_learnt = |turn: &TurnSpan| self.learnt == Learnt::EveryAssistantTurn || Some(turn.message) == last;
        Ok((text, turns.into_iter().filter(is_learnt).map(|turn| turn.bytes).collect()))
    }

    fn learnt_turns(&self, messages: &[Message]) -> u32 {
        let answers = messages.iter().filter(|message| message.role == Role::Assistant).count() as u32;
        if self.learnt == Learnt::EveryAssistantTurn { answers } else { answers.min(1) }
    }
}

/// How many system turns a conversation begins with.
fn leading_system(messages: &[Message]) -> usize {
    messages.iter().take_while(|message| message.role == Role::System).count()
}

fn describe(whole: usize, limit: usize, kept: usize, cut_turns: usize, without_system: bool) -> String {
    let turns = if cut_turns == 1 { "1 turn was".to_owned() } else { format!("{cut_turns} turns were") };
    let system = if without_system { ", the system prompt among them" } else { "" };
    format!("{whole} tokens exceed max_seq_length {limit}: {turns} cut{system}; {kept} tokens are left")
}
