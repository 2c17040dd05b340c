//! Changes to a template's source before it is compiled: `{% generation %}`, line ends, and conditions that drop the
//! reasoning of earlier turns.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

/// The filter that stands for `{% generation %}`.
pub(super) const GENERATION_FILTER: &str = "__brightrun_generation";

/// "Is this turn after the last question": the condition under which Qwen's templates keep a turn's reasoning.
static AFTER_LAST_QUERY: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"loop\.index0\s*>\s*\w+\.last_query_index\b").ok());
/// "Is this the last turn, or has it any reasoning": the condition inside it.
static LAST_OR_REASONED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"loop\.last\s+or\s+(\(\s*not\s+loop\.last\s+and\s+reasoning_content\s*\)|reasoning_content\b)").ok()
});

/// A template's source, ready to be compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rewritten {
    /// The source.
    pub(super) source: String,
    /// Whether it marks the assistant's turns itself.
    pub(super) marks_turns: bool,
    /// The source in which no turn loses its reasoning, where the template has such conditions.
    pub(super) keeps_reasoning: Option<String>,
}

/// Prepares a source. Lines stay where they are, so that errors name the right one.
pub(super) fn rewrite(source: &str) -> Rewritten {
    // Python reads files with universal line ends, and Jinja2 does the same with templates.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (source, marks_turns) = generation_blocks(&source);
    let keeps_reasoning = keep_reasoning(&source);
    Rewritten { source, marks_turns, keeps_reasoning }
}

/// `{% generation %}` and `{% endgeneration %}` become a scope and a filter block. The first tag of each pair keeps the
/// white-space control of the left side, the second that of the right side; nothing stands between them.
fn generation_blocks(source: &str) -> (String, bool) {
    let mut rewritten = String::with_capacity(source.len());
    let mut copied = 0;
    let mut marks_turns = false;
    for tag in block_tags(source) {
        let (first, second) = match tag.words(source) {
            "generation" => ("with", format!("filter {GENERATION_FILTER}")),
            "endgeneration" => ("endfilter", "endwith".to_owned()),
            _ => continue,
        };
        marks_turns = true;
        let (left, right) = tag.controls(source);
        rewritten.push_str(&source[copied..tag.whole.start]);
        rewritten.push_str(&format!("{{%{left} {first} %}}{{% {second} {right}%}}"));
        copied = tag.whole.end;
    }
    rewritten.push_str(&source[copied..]);
    (rewritten, marks_turns)
}

fn keep_reasoning(source: &str) -> Option<String> {
    let (outer, inner) = (AFTER_LAST_QUERY.as_ref()?, LAST_OR_REASONED.as_ref()?);
    let is_condition = |tag: &&Tag| matches!(tag.words(source).split_whitespace().next(), Some("if" | "elif"));
    let tags: Vec<Tag> = block_tags(source).collect();
    if !tags.iter().filter(is_condition).any(|tag| outer.is_match(&source[tag.inner.clone()])) {
        return None;
    }
    let mut rewritten = String::with_capacity(source.len());
    let mut copied = 0;
    for tag in tags.iter().filter(is_condition) {
        rewritten.push_str(&source[copied..tag.inner.start]);
        let condition = outer.replace_all(&source[tag.inner.clone()], "true");
        rewritten.push_str(&inner.replace_all(&condition, "true"));
        copied = tag.inner.end;
    }
    rewritten.push_str(&source[copied..]);
    Some(rewritten)
}

/// A `{% … %}`.
struct Tag {
    whole: Range<usize>,
    /// What stands between `{%` and `%}`, white-space control included.
    inner: Range<usize>,
}

impl Tag {
    fn words<'a>(&self, source: &'a str) -> &'a str {
        let inner = &source[self.inner.clone()];
        let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
        inner.strip_suffix(['-', '+']).unwrap_or(inner).trim()
    }

    fn controls<'a>(&self, source: &'a str) -> (&'a str, &'a str) {
        let inner = &source[self.inner.clone()];
        let left = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
        let right =
            if inner.len() > left.len() && inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
        (left, right)
    }
}

/// The block tags of a source; comments, expressions and raw blocks are stepped over.
fn block_tags(source: &str) -> impl Iterator<Item = Tag> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + source[at..].find('{')?;
            let kind = source.as_bytes().get(start + 1).copied();
            at = start + 1;
            match kind {
                Some(b'#') => at = start + 2 + source[start + 2..].find("#}").map(|end| end + 2)?,
                Some(b'{') => at = end_of_tag(source, start + 2, "}}")?,
                Some(b'%') => {
                    at = end_of_tag(source, start + 2, "%}")?;
                    let tag = Tag { whole: start..at, inner: start + 2..at - 2 };
                    if tag.words(source) == "raw" {
                        at = end_of_raw(source, at)?;
                    } else {
                        return Some(tag);
                    }
                }
                _ => {}
            }
        }
    })
}

/// Where a tag ends: after `close`, outside of strings and brackets.
fn end_of_tag(source: &str, start: usize, close: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    let mut depth = 0usize;
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'\'' | b'"') => {
                at += 1;
                while *bytes.get(at)? != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ if depth == 0 && bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

fn end_of_raw(source: &str, start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let open = at + source[at..].find("{%")?;
        let close = open + source[open..].find("%}")? + 2;
        let tag = Tag { whole: open..close, inner: open + 2..close.saturating_sub(2).max(open + 2) };
        if tag.words(source) == "endraw" {
            return Some(close);
        }
        at = open + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_keep_their_white_space_control() {
        let source = "a\r\n  {%- generation +%} b {% endgeneration -%}\rc{#{% generation %}#}{{ '{% generation %}' }}\
                      {% raw %}{% generation %}{% endraw %}{%generation%}{{ {'a': '}}'}}}{%+endgeneration%}";
        let rewritten = rewrite(source);
        assert!(rewritten.marks_turns);
        assert_eq!(
            rewritten.source,
            "a\n  {%- with %}{% filter __brightrun_generation +%} b {% endfilter %}{% endwith -%}\nc\
             {#{% generation %}#}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}\
             {% with %}{% filter __brightrun_generation %}{{ {'a': '}}'}}}{%+ endfilter %}{% endwith %}"
        );
        assert!(!rewrite("{# {% generation %} #}{% if generation %}x{% endif %}").marks_turns);
    }

    #[test]
    fn conditions_on_the_last_query_become_true_inside_of_tags_only() {
        let source = "{# loop.index0 > ns.last_query_index #}{% if a or (loop.index0 > ns.last_query_index) %}\
                      {%- if loop.last or (not loop.last and reasoning_content) %}x{% endif %}{% elif loop.last %}y{% endif %}";
        assert_eq!(
            rewrite(source).keeps_reasoning.unwrap(),
            "{# loop.index0 > ns.last_query_index #}{% if a or (true) %}{%- if true %}x{% endif %}\
             {% elif loop.last %}y{% endif %}"
        );
        let other = "{% if loop.last or (not loop.last and reasoning_content) %}x{% endif %}{{ loop.index0 > ns.last_query_index }}";
        assert_eq!(rewrite(other).keeps_reasoning, None);
    }

    #[test]
    fn sources_that_end_early_are_left_alone() {
        for source in ["{", "{%", "{{ '", "{# ", "{% raw %}{%", "{% raw %}{% endraw", "{%%}", "{%-%}", "{% '\\"] {
            let rewritten = rewrite(source);
            assert_eq!((rewritten.source.as_str(), rewritten.marks_turns), (source, false));
        }
    }
}
