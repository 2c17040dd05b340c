//! The report for people: plain text, no colour, lines of a limited width.

use std::fmt::{self, Display, Formatter, Write};

use super::{Bucket, DatasetReport, FileReport, FindingCount, SideReport, SplitKind, place};
use crate::dataset::finding::{Finding, Severity};

/// Longest line.
const WIDTH: usize = 100;
/// Longest bar of the histogram.
const BAR: u64 = 40;
/// So many findings of a kind are shown.
const FINDINGS_SHOWN: usize = 5;
/// Where the text of a line begins.
const COLUMN: usize = 12;

impl Display for DatasetReport {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write_file(out, "Dataset", &self.training)?;
        if self.rough_tokens {
            let text = "no base model is at hand (--model DIR), so a small tokenizer of our own counts: numbers of tokens \
                        and cuts are rough, and most models need fewer tokens";
            row(out, "Rough", text)?;
        }
        row(out, "Template", &printable(&self.template.source))?;
        for note in &self.template.notes {
            row(out, "", &printable(note))?;
        }
        write_lengths(out, &self.training, self.settings.max_seq_length)?;
        if let Some(validation) = &self.validation {
            out.write_char('\n')?;
            write_file(out, "Validation", validation)?;
            write_lengths(out, validation, self.settings.max_seq_length)?;
        }
        out.write_char('\n')?;
        row(out, "Split", &split(self))?;
        row(out, "Packing", &packing(self))?;
        row(out, "Steps", &steps(self))?;
        for file in self.files() {
            write_findings(out, file)?;
        }
        out.write_char('\n')?;
        row(
            out,
            if self.ready { "Ready" } else { "Refused" },
            self.verdict.split_once(": ").map_or("", |parts| parts.1),
        )
    }
}

/// A name and its text, wrapped into the column.
fn row(out: &mut Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    wrapped(out, &format!("{name:<COLUMN$}"), text)
}

/// Text after a beginning, on as many lines as it needs; those after the first are indented by as much. A word longer than
/// a line is cut into pieces.
fn wrapped(out: &mut impl Write, beginning: &str, text: &str) -> fmt::Result {
    let indent = beginning.chars().count();
    let room = WIDTH.saturating_sub(indent).max(1);
    out.write_str(beginning)?;
    let mut used = 0;
    for word in text.split(' ') {
        for (piece, letters) in word.chars().collect::<Vec<_>>().chunks(room).enumerate() {
            let gap = usize::from(used > 0 && piece == 0);
            if used + gap + letters.len() > room {
                write!(out, "\n{:indent$}", "")?;
                used = 0;
            } else if gap > 0 {
                out.write_char(' ')?;
                used += 1;
            }
            letters.iter().try_for_each(|letter| out.write_char(*letter))?;
            used += letters.len();
        }
    }
    out.write_char('\n')
}

fn write_file(out: &mut Formatter<'_>, title: &str, file: &FileReport) -> fmt::Result {
    let digest: String = file.sha256.chars().take(12).collect();
    let name = printable(&file.name);
    row(out, title, &format!("{name}, {}, format {}, sha256 {digest}…", size(file.bytes), printable(&file.format)))?;
    let (examples, lines) = (number(file.examples), number(file.lines));
    row(out, "Examples", &format!("{examples} of {lines} lines, {} left out", number(file.skipped)))?;
    row(
        out,
        "",
        &format!(
            "{} of {} turns, {} tokens a turn",
            counted(file.conversations, "conversation"),
            file.avg_turns_per_conversation,
            file.avg_tokens_per_turn
        ),
    )?;
    row(
        out,
        "Tokens",
        &format!(
            "{}, of which {} are learnt ({}) and the rest is read only ({})",
            number(file.tokens),
            number(file.learnt_tokens),
            percent(file.learnt_share),
            percent(file.masked_share)
        ),
    )
}

fn write_lengths(out: &mut Formatter<'_>, file: &FileReport, limit: usize) -> fmt::Result {
    let lengths = &file.lengths;
    if lengths.buckets.is_empty() {
        return Ok(());
    }
    row(
        out,
        "Lengths",
        &format!(
            "median {}, 95 % up to {}, longest {} tokens, before cutting",
            number(lengths.median.into()),
            number(lengths.p95.into()),
            number(lengths.longest.into())
        ),
    )?;
    out.write_str(&histogram(&lengths.buckets))?;
    let cut = &file.truncations;
    let text = match cut.examples {
        0 => format!("none: no example exceeds {} tokens", number(limit as u64)),
        examples => format!(
            "{} of {} examples exceed {} tokens and lost their oldest turns: {} turns, {} tokens",
            number(examples),
            number(file.examples),
            number(limit as u64),
            number(cut.turns),
            number(cut.tokens)
        ),
    };
    row(out, "Cut", &text)
}

/// One line for each bucket. Bars are drawn to one scale, which is said where a mark is more than one example; what is
/// left over after whole marks is a point, so that no example is invisible.
fn histogram(buckets: &[Bucket]) -> String {
    let most = buckets.iter().map(|bucket| bucket.examples).max().unwrap_or_default();
    let unit = most.div_ceil(BAR).max(1);
    let edge = |edge: u32| number(edge.into());
    let width = buckets.iter().map(|bucket| edge(bucket.to).len()).max().unwrap_or_default();
    let mut text = String::new();
    for bucket in buckets {
        let mut bar = "#".repeat((bucket.examples / unit) as usize);
        if bucket.examples % unit > 0 {
            bar.push('.');
        }
        let range = format!("{:>width$} - {:>width$}", edge(bucket.from), edge(bucket.to));
        let line = format!("{:COLUMN$}{range} | {bar} {}", "", number(bucket.examples));
        text.push_str(&line);
        text.push('\n');
    }
    if unit > 1 {
        text.push_str(&format!("{:COLUMN$}each # is {} examples, a point is fewer\n", "", number(unit)));
    }
    text
}

fn split(report: &DatasetReport) -> String {
    let (training, validation) = (&report.split.training, &report.split.validation);
    let side = |side: &SideReport| {
        format!("{} of {}", counted(side.examples, "example"), counted(side.conversations, "conversation"))
    };
    let learnt = format!("{} to learn from", side(training));
    let measured = format!("{} to measure with", side(validation));
    match report.split.by {
        SplitKind::None => format!("{learnt}, nothing to measure with"),
        SplitKind::Conversation => format!("{learnt}, {measured}"),
        SplitKind::File => format!("{learnt}, {measured} (a file of its own)"),
    }
}

fn packing(report: &DatasetReport) -> String {
    let packing = &report.packing;
    let padding = match packing.padding_share {
        0.0 => "no padding".to_owned(),
        share => format!("{} of what is computed is padding", percent(share)),
    };
    format!(
        "{}: {} an epoch, {} of their {} tokens used, {padding}",
        if report.settings.packing { "on" } else { "off" },
        counted(packing.micro_batches_per_epoch, "micro-batch"),
        percent(packing.fill_share),
        number(packing.capacity.into())
    )
}

fn steps(report: &DatasetReport) -> String {
    let settings = &report.settings;
    let limit = settings.max_steps.map(|limit| format!(", max_steps {}", number(limit))).unwrap_or_default();
    format!(
        "{} in all: {} an epoch of {} each, {}{limit}",
        number(report.steps.total),
        number(report.steps.per_epoch),
        counted(settings.batch_size as u64, "example"),
        counted(settings.num_epochs.into(), "epoch")
    )
}

fn write_findings(out: &mut Formatter<'_>, file: &FileReport) -> fmt::Result {
    if file.finding_counts.is_empty() {
        return Ok(());
    }
    write!(out, "\nFindings in {}\n", printable(&file.name))?;
    for count in &file.finding_counts {
        write_kind(out, file, count)?;
    }
    Ok(())
}

fn write_kind(out: &mut Formatter<'_>, file: &FileReport, count: &FindingCount) -> fmt::Result {
    let severity = match count.severity {
        Severity::Fatal => "fatal",
        Severity::Skipped => "left out",
        Severity::Kept => "used",
    };
    let title = format!("{severity}, {} × {}:", number(count.count), count.kind.name());
    wrapped(out, "  ", &format!("{title} {}", count.meaning))?;
    let of_kind = |finding: &&Finding| finding.kind == count.kind;
    let mut shown = 0;
    for finding in file.findings.iter().filter(of_kind).take(FINDINGS_SHOWN) {
        wrapped(out, &format!("    {}", place(finding)), &printable(&finding.message))?;
        shown += 1;
    }
    match count.count.saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "    … and {} more", number(more)),
    }
}

/// Text of a file must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// 1234567 as 1,234,567.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and what it counts.
pub(super) fn counted(count: u64, what: &str) -> String {
    let plural = match (count, what.ends_with("batch")) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {what}{plural}", number(count))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "KiB", "MiB", "GiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        (amount, unit) = (amount / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(from: u32, to: u32, examples: u64) -> Bucket {
        Bucket { from, to, examples }
    }

    #[test]
    fn bars_are_to_scale_and_the_scale_is_said() {
        let text = histogram(&[bucket(1, 32, 3), bucket(33, 48, 0), bucket(49, 64, 1)]);
        assert_eq!(text, "             1 - 32 | ### 3\n            33 - 48 |  0\n            49 - 64 | # 1\n");
        let text = histogram(&[bucket(769, 1024, 120), bucket(1025, 1536, 1), bucket(1537, 2048, 7)]);
        let bar = "#".repeat(40);
        let expected = format!(
            "              769 - 1,024 | {bar} 120\n            1,025 - 1,536 | . 1\n            1,537 - 2,048 | ##. 7\n            \
             each # is 3 examples, a point is fewer\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn the_longest_line_of_a_histogram_fits() {
        let text = histogram(&[bucket(1_610_612_737, u32::MAX, 9_999_999_999), bucket(1, 2, 1)]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn text_is_wrapped_between_words_and_long_words_are_cut() {
        let mut text = String::new();
        wrapped(&mut text, "  begin ", &format!("{} {} end", "a".repeat(60), "b".repeat(200))).unwrap();
        let lengths: Vec<usize> = text.lines().map(|line| line.trim().len()).collect();
        assert_eq!(lengths, [66, 92, 92, 20], "{text}");
        assert!(text.lines().all(|line| line.len() <= WIDTH) && text.ends_with("b end\n"), "{text}");
        assert_eq!(text.lines().nth(1).unwrap().find('b'), Some(8));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(number), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1023, 1024, 5_000_000].map(size), ["0 bytes", "1023 bytes", "1.0 KiB", "4.8 MiB"]);
        assert_eq!(percent(0.1234), "12.3 %");
        assert_eq!(printable("a\x1b[31m\nb"), "a\u{fffd}[31m\u{fffd}b");
    }
}
