//! `brightrun generate`: answers of a base model, and beside them those with an adapter.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use brightrun_trainer::{
    generate::{self, Answer, AnswerOptions, Chat, Finish, Prompt, Sampler, Sampling},
    model::Model,
};
use clap::{ArgGroup, Args};
use indicatif::MultiProgress;
use serde_json::{Value, json};

use crate::{
    command::{self, Bar, Ended, Precision},
    input::{self, FetchOptions},
    job::{BaseModel, Dataset},
    progress::Progress,
    train,
};

const BAR: &str = "{elapsed_precise} {pos} of at most {len} tokens  {per_sec}";

/// The command line of `brightrun generate`.
#[derive(Args)]
#[command(group(ArgGroup::new("question").required(true).args(["prompt", "messages", "dataset"])))]
pub(crate) struct Options {
    /// Folder of the base model, or demo.
    #[arg(long, value_name = "DIR")]
    base: String,
    /// Folder of the adapter; without one only the base answers.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// A question.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A conversation: a JSON list of {"role": ..., "content": ...}, or an object with it as "messages".
    #[arg(long, value_name = "FILE.json")]
    messages: Option<PathBuf>,
    /// Conversations of a dataset, each up to its last answer: a path, a URL, or demo:conversations.
    #[arg(long, value_name = "FILE|URL")]
    dataset: Option<String>,
    /// How many conversations of the dataset.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// A system prompt, in place of the conversation's own.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=262_144))]
    max_new_tokens: u32,
    /// Draws tokens, the more freely the higher; 0 takes the best one always.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draws from the best tokens whose chances reach this sum.
    #[arg(long, value_name = "P", requires = "temperature")]
    top_p: Option<f64>,
    /// Draws from so many of the best tokens.
    #[arg(long, value_name = "K", requires = "temperature")]
    top_k: Option<usize>,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// How the base is held: nf4, as it was trained on, or full.
    #[arg(long, value_enum, default_value_t = Precision::Nf4)]
    base_precision: Precision,
    /// Prints the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where fetched datasets and the demo's base model are kept.
    #[arg(long, value_name = "DIR", default_value = train::CACHE)]
    cache: PathBuf,
    #[command(flatten)]
    fetching: FetchOptions,
}

/// Questions with their answers.
pub(crate) struct Answers(Vec<Asked>);

struct Asked {
    prompt: Prompt,
    prompt_tokens: usize,
    base: Answer,
    adapted: Option<Answer>,
}

/// Where the conversations come from.
enum Question<'a> {
    Text(&'a str),
    Messages(&'a Path),
    Dataset(Dataset),
}

struct Request<'a> {
    options: &'a Options,
    base: BaseModel,
    question: Question<'a>,
    sampling: Sampling,
}

/// Answers.
pub(crate) fn generate(options: &Options, terminal: &MultiProgress) -> Ended<Answers> {
    command::run(understand(options), |request| request.carry_out(terminal))
}

fn understand(options: &Options) -> Result<Request<'_>, Vec<String>> {
    let mut problems = Vec::new();
    let base = command::base(&options.base, true, &mut problems);
    options.adapter.iter().for_each(|adapter| command::check_adapter(adapter, &mut problems));
    let sampling = Sampling {
        temperature: options.temperature,
        top_p: options.top_p.unwrap_or(1.0),
        top_k: options.top_k,
        seed: options.seed,
    };
    problems.extend(Sampler::new(sampling).err().map(|error| error.to_string()));
    let question = match (&options.prompt, &options.messages, &options.dataset) {
        (Some(text), _, _) => Some(Question::Text(text)),
        (_, Some(path), _) => Some(Question::Messages(path)),
        (_, _, Some(name)) => command::dataset("--dataset", name, &mut problems).map(Question::Dataset),
        (None, None, None) => {
            problems.push("there is no question; give --prompt, --messages or --dataset".into());
            None
        }
    };
    match question.filter(|_| problems.is_empty()) {
        Some(question) => Ok(Request { options, base, question, sampling }),
        None => Err(problems),
    }
}

// === impl Request ===

impl Request<'_> {
    fn carry_out(&self, terminal: &MultiProgress) -> anyhow::Result<Answers> {
        let options = self.options;
        let base = command::base_folder(&self.base, &options.cache)?;
        let prompts = self.prompts(terminal)?;
        let chat = Chat::load(&base)?;
        tracing::info!("loading the base model");
        let model = Model::open(&base, options.adapter.as_deref(), &options.base_precision.of_base())?;
        let mut asked = Vec::new();
        let count = prompts.len();
        for (number, prompt) in prompts.into_iter().enumerate() {
            let tokens = chat.prompt(&prompt.messages, &prompt.tools)?;
            let answer = |adapted: bool| {
                let who = if adapted { "base and adapter" } else { "the base" };
                tracing::info!("question {} of {count}: {who}", number + 1);
                let answering = AnswerOptions {
                    max_new_tokens: options.max_new_tokens as usize,
                    sampling: self.sampling.for_prompt(number as u64),
                };
                let bar = Bar::new(terminal, BAR);
                let mut done = 0;
                chat.answer(&model, &tokens, &answering, adapted, &mut |_| {
                    done += 1;
                    bar.set(done, u64::from(options.max_new_tokens));
                    ControlFlow::Continue(())
                })
            };
            let base = answer(false)?;
            let adapted = options.adapter.is_some().then(|| answer(true)).transpose()?;
            asked.push(Asked { prompt, prompt_tokens: tokens.len(), base, adapted });
        }
        Ok(Answers(asked))
    }

    fn prompts(&self, terminal: &MultiProgress) -> anyhow::Result<Vec<Prompt>> {
        let options = self.options;
        let prompts = match &self.question {
            Question::Text(text) => vec![generate::from_text(text)],
            Question::Messages(path) => vec![generate::from_messages_file(path)?],
            Question::Dataset(dataset) => {
                let folder = command::inputs(&options.cache)?;
                let progress = Progress::new(terminal.clone());
                let file = input::dataset(dataset, "dataset", &folder, &options.fetching, &progress)?;
                generate::from_dataset(&file, options.count as usize)?
            }
        };
        Ok(match &options.system {
            Some(system) => prompts.into_iter().map(|prompt| prompt.with_system(system)).collect(),
            None => prompts,
        })
    }
}

impl command::Shown for Answers {
    fn json(&self) -> Value {
        let message = |message: &brightrun_trainer::dataset::example::Message| json!({ "role": message.role.name(), "content": message.content });
        let answer =
            |answer: &Answer| json!({ "text": answer.text, "tokens": answer.tokens.len(), "finish": answer.finish });
        let asked = |asked: &Asked| {
            json!({
                "messages": asked.prompt.messages.iter().map(message).collect::<Vec<_>>(),
                "line": asked.prompt.line,
                "expected": asked.prompt.expected,
                "prompt_tokens": asked.prompt_tokens,
                "base": answer(&asked.base),
                "adapter": asked.adapted.as_ref().map(answer),
            })
        };
        json!({ "answers": self.0.iter().map(asked).collect::<Vec<_>>() })
    }

    fn text(&self) -> String {
        self.0.iter().map(Asked::text).collect::<Vec<_>>().join("\n")
    }
}

// === impl Asked ===

impl Asked {
    fn text(&self) -> String {
        let part = |name: &str, text: &str| {
            let text = command::printable(text);
            let lines: Vec<String> = text.trim().lines().map(|line| format!("  {line}\n")).collect();
            format!("{name}\n{}", if lines.is_empty() { "  (nothing)\n".to_owned() } else { lines.concat() })
        };
        let answered = |name: &str, answer: &Answer| {
            let cut = match answer.finish {
                Finish::End => "",
                Finish::Length => ", cut off",
            };
            part(&format!("{name} ({} tokens{cut})", answer.tokens.len()), &answer.text)
        };
        let mut text = part("Question", self.prompt.question());
        text.extend(self.prompt.expected.iter().map(|expected| part("Expected", expected)));
        text.push_str(&answered("Base", &self.base));
        text.extend(self.adapted.iter().map(|answer| answered("Base + adapter", answer)));
        text
    }
}
