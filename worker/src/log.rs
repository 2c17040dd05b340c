//! What is said on the way, and in which form: for people on standard error, and for RunPod as lines of JSON with the name of
//! the job, on standard output, as its own workers write them.

use std::{
    env,
    fmt::{self, Write},
    io::{self, IsTerminal},
};

use indicatif::MultiProgress;
use serde_json::{Value, json};
use tracing::{
    Event, Level, Span, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    metadata::Metadata,
};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::filter_fn,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::progress::LogWriter;

/// RunPod sets it in the containers of its endpoints.
const ENDPOINT: &str = "RUNPOD_ENDPOINT_ID";
/// Names of levels for RunPod's own workers; the first that is set counts, after `RUST_LOG`.
const LEVELS: [&str; 2] = ["RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"];
/// RunPod cuts longer messages somewhere.
const LONGEST_MESSAGE: usize = 4096;
/// Lines that wait for whoever reads them; what comes beyond them is lost, for nobody waits for a reader of logs.
const WAITING_LINES: usize = 10_000;
/// The span of a job; what is said within carries the job's name.
const JOB: &str = "job";

/// As long as this lives, what was said is written; afterwards all of it is.
pub(crate) type Guard = Option<WorkerGuard>;

/// Begins to write for the person in front of a command.
pub(crate) fn for_people(terminal: &MultiProgress) -> Guard {
    let writer = LogWriter::new(terminal.clone());
    let layer = tracing_subscriber::fmt::layer().with_target(false).with_ansi(io::stderr().is_terminal());
    let layer = layer.log_internal_errors(false).with_writer(move || writer.clone());
    tracing_subscriber::registry().with(layer.with_filter(filter(None))).with(filter_fn(is_ours_or_important)).init();
    None
}

/// Begins to write for whoever runs a service, at the level that the command line says, if it does. Nothing waits for the reader: a full pipe loses lines, and a closed one all.
pub(crate) fn for_a_service(level: Option<LevelFilter>) -> Guard {
    let on_platform = env::var_os(ENDPOINT).is_some_and(|name| !name.is_empty());
    let (writer, guard) = if on_platform { aside(io::stdout()) } else { aside(io::stderr()) };
    let layer = tracing_subscriber::fmt::layer().log_internal_errors(false).with_ansi(false).with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter_fn(is_ours_or_important));
    if on_platform {
        registry.with(layer.event_format(JsonLines).with_filter(filter(level))).init();
    } else {
        registry.with(layer.with_target(false).with_filter(filter(level))).init();
    }
    Some(guard)
}

/// The span of a job: what is said within it is said of the job.
pub(crate) fn job(id: &str) -> Span {
    // Whatever the level, lines have a job.
    tracing::error_span!("job", id = %id)
}

fn aside(stream: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().buffered_lines_limit(WAITING_LINES).thread_name("log").finish(stream)
}

fn filter(told: Option<LevelFilter>) -> EnvFilter {
    let level = || told.unwrap_or_else(|| level(|name| env::var(name).ok()));
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level().to_string()))
}

/// The level that RunPod's variables name.
fn level(variable: impl Fn(&str) -> Option<String>) -> LevelFilter {
    let named = LEVELS.iter().find_map(|name| variable(name).filter(|text| !text.trim().is_empty()));
    match named.map(|name| name.trim().to_ascii_uppercase()).as_deref() {
        Some("NOTSET" | "TRACE") => LevelFilter::TRACE,
        Some("DEBUG") => LevelFilter::DEBUG,
        Some("WARN" | "WARNING") => LevelFilter::WARN,
        Some("ERROR" | "CRITICAL" | "FATAL") => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    }
}

/// What says names of keys and answers of servers that lend some, at every level.
const TALKATIVE: &str = "aws_config";

/// Libraries write whole requests at their lower levels, with keys and signatures, and know nothing of what is secret here.
fn is_ours_or_important(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target.starts_with("brightrun") || (*metadata.level() <= Level::INFO && !target.starts_with(TALKATIVE))
}

/// One JSON object a line.
struct JsonLines;

// === impl JsonLines ===

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let job = context.event_scope().into_iter().flatten().find(|span| span.name() == JOB).and_then(|span| {
            let fields = span.extensions();
            let fields = &fields.get::<FormattedFields<N>>()?.fields;
            Some(fields.strip_prefix("id=").unwrap_or(fields).to_owned())
        });
        writeln!(writer, "{}", line(job.as_deref(), *event.metadata().level(), &said.0))
    }
}

/// The message of an event, and what else it says behind it.
#[derive(Default)]
struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => {
                self.0.insert_str(0, &format!("{value:?}"));
                Ok(())
            }
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

fn line(job: Option<&str>, level: Level, message: &str) -> Value {
    json!({ "requestId": job, "message": cut(message), "level": level.as_str() })
}

/// Long messages lose their middle: what happened stands at the beginning, and why at the end.
fn cut(message: &str) -> String {
    let count = message.chars().count();
    if count <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    let kept = (LONGEST_MESSAGE - 5) / 2;
    let begin: String = message.chars().take(kept).collect();
    let end: String = message.chars().skip(count - kept).collect();
    format!("{begin} … {end}")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(say: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let target = written.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(JsonLines).with_ansi(false);
        let layer = layer.with_writer(move || target.clone());
        let subscriber = tracing_subscriber::registry().with(filter_fn(is_ours_or_important)).with(layer);
        tracing::subscriber::with_default(subscriber, say);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn what_is_said_of_a_job_carries_its_name() {
        let lines = lines(|| {
            tracing::info!("ready");
            job("abc-u1").in_scope(|| tracing::warn!(tries = 3, "a \"quoted\"\nline"));
        });
        let expected = [
            json!({ "requestId": null, "message": "ready", "level": "INFO" }),
            json!({ "requestId": "abc-u1", "message": "a \"quoted\"\nline tries=3", "level": "WARN" }),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn libraries_say_only_what_is_important() {
        let lines = lines(|| {
            tracing::trace!(target: "aws_sigv4", "x-amz-security-token:S3CR3T");
            tracing::warn!(target: "aws_config::profile::credentials", "the answer was S3CR3T");
            tracing::debug!(target: "hyper", "header");
            tracing::info!(target: "hyper", "info");
            tracing::debug!("ours");
        });
        let said: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(said, ["info", "ours"]);
    }

    #[test]
    fn long_messages_keep_both_ends() {
        let long = format!("begin {} end", "ü".repeat(10_000));
        let cut = cut(&long);
        assert!(cut.starts_with("begin ü") && cut.ends_with("ü end") && cut.chars().count() <= LONGEST_MESSAGE);
        assert_eq!(super::cut("short"), "short");
    }

    #[test]
    fn the_platforms_names_of_levels_are_known() {
        let of = |text: &str| level(|name| (name == "RUNPOD_DEBUG_LEVEL").then(|| text.to_owned()));
        let levels = [of("debug"), of("WARNING"), of("NOTSET"), of("ERROR"), of("INFO"), of(""), of("loud")];
        let (debug, warn, trace) = (LevelFilter::DEBUG, LevelFilter::WARN, LevelFilter::TRACE);
        let info = LevelFilter::INFO;
        assert_eq!(levels, [debug, warn, trace, LevelFilter::ERROR, info, info, info]);
        assert_eq!(level(|name| Some(if name == "RUNPOD_LOG_LEVEL" { "WARN" } else { "DEBUG" }.to_owned())), warn);
    }
}
