use std::sync::LazyLock;

use proptest::prelude::*;

use super::{testing::*, *};

static MODEL: LazyLock<TextModel> = LazyLock::new(TextModel::demo);

/// The demo's ChatML.
fn rendered(messages: &[Message]) -> String {
    messages.iter().map(rendered_turn).collect()
}

fn rendered_turn(message: &Message) -> String {
    format!("<|im_start|>{}\n{}<|im_end|>\n", message.role.name(), message.content.as_deref().unwrap_or_default())
}

/// What is learnt of a turn.
fn answer(message: &Message) -> String {
    format!("{}<|im_end|>\n", message.content.as_deref().unwrap_or_default())
}

fn length(messages: &[Message]) -> usize {
    MODEL.encode(&example(messages.to_vec(), Learnt::EveryAssistantTurn), OPTIONS).0.len()
}

fn limited(max_length: usize) -> PrepareOptions {
    PrepareOptions { max_length, ..OPTIONS }
}

fn conversation() -> Vec<Message> {
    turns(&[
        ('s', "Be kind."),
        ('u', "First question about a chain?"),
        ('a', "First answer."),
        ('u', "Second question?"),
        ('a', "Second answer."),
        ('u', "Thanks"),
    ])
}

#[test]
fn options_decide_what_is_learnt() {
    let messages = conversation();
    let (first, second) = (answer(&messages[2]), answer(&messages[4]));
    let learnt = |learnt, options| MODEL.learnt(&MODEL.encoded(&example(messages.clone(), learnt), options).0);
    assert_eq!(learnt(Learnt::EveryAssistantTurn, OPTIONS), first.clone() + &second);
    assert_eq!(learnt(Learnt::LastAssistantTurn, OPTIONS), second);
    let every = PrepareOptions { learn_every_turn: true, ..OPTIONS };
    assert_eq!(learnt(Learnt::LastAssistantTurn, every), first + &second);
    let prompt = PrepareOptions { train_on_prompt: true, ..OPTIONS };
    assert_eq!(learnt(Learnt::LastAssistantTurn, prompt), rendered(&messages));
}

#[test]
fn what_is_counted_is_what_is_there() {
    let (tokens, encoded) = MODEL.encoded(&example(conversation(), Learnt::EveryAssistantTurn), OPTIONS);
    let learnt = tokens.iter().filter(|token| *token & LEARNT != 0).count() as u32;
    let all = tokens.len() as u32;
    assert_eq!(encoded.documents, [EncodedDocument { tokens: all, targets: learnt, whole_tokens: all }]);
    assert_eq!((encoded.line, encoded.turns, encoded.learnt_turns, encoded.cut_turns), (4, 5, 2, 0));
    // The first token of all is learnt here, and nothing predicts it.
    let prompt = PrepareOptions { train_on_prompt: true, ..OPTIONS };
    let (_, encoded) = MODEL.encoded(&example(conversation(), Learnt::EveryAssistantTurn), prompt);
    assert_eq!(encoded.documents[0].targets, all - 1);
}

#[test]
fn history_goes_from_the_left_then_the_system_turn_and_the_answer_never() {
    let messages = conversation();
    let kept = |max_length| {
        let (tokens, outcome) =
            MODEL.encode(&example(messages.clone(), Learnt::LastAssistantTurn), limited(max_length));
        let encoded = outcome.encoded.unwrap();
        assert_eq!(MODEL.learnt(&tokens), answer(&messages[4]));
        assert!(encoded.documents[0].tokens as usize <= max_length);
        assert_eq!(encoded.documents[0].whole_tokens as usize, length(&messages));
        (MODEL.decode(tokens), encoded.cut_turns, outcome.findings)
    };
    let form = |indices: &[usize]| indices.iter().map(|at| messages[*at].clone()).collect::<Vec<_>>();
    // (what is left at the limit of its own length and no longer one token below it)
    let forms = [&[0, 1, 2, 3, 4][..], &[0, 3, 4], &[3, 4], &[0, 4], &[4]].map(form);
    let mut limit = length(&messages) - 1;
    for form in forms {
        let size = length(&form);
        if size > limit {
            // Shorter ones that were tried later do not always follow on longer ones.
            continue;
        }
        for limit in [limit, size] {
            let (text, cut, findings) = kept(limit);
            assert_eq!((text, cut as usize), (rendered(&form), messages.len() - form.len()));
            assert_eq!(findings.len(), 1);
            assert_eq!((findings[0].kind, findings[0].line), (FindingKind::HistoryCut, 4));
            let told = format!("{} tokens exceed max_seq_length {limit}", length(&messages));
            assert!(findings[0].message.contains(&told), "{}", findings[0].message);
        }
        limit = size - 1;
    }
    let alone = length(&messages[4..5]);
    let (tokens, outcome) = MODEL.encode(&example(messages.clone(), Learnt::LastAssistantTurn), limited(alone - 1));
    assert!(tokens.is_empty() && outcome.encoded.is_none());
    assert_eq!(outcome.findings[0].kind, FindingKind::TargetTooLong);
    let message = &outcome.findings[0].message;
    assert!(message.contains(&format!("has {alone} tokens")) && message.contains("would keep it"), "{message}");
}

#[test]
fn where_no_users_turn_fits_history_begins_with_an_answer_rather_than_not_at_all() {
    let long = "A question that goes on and on about chains, sprockets and the rain in the hills. ".repeat(20);
    let messages = turns(&[('s', "S"), ('u', &long), ('a', "Let me look."), ('t', "Found."), ('a', "It is rust.")]);
    let (tokens, encoded) = MODEL.encoded(&example(messages.clone(), Learnt::EveryAssistantTurn), limited(60));
    let kept = [&messages[..1], &messages[2..]].concat();
    assert_eq!((MODEL.decode(tokens.iter().copied()), encoded.cut_turns), (rendered(&kept), 1));
    assert_eq!(encoded.learnt_turns, 2);
}

#[test]
fn a_form_that_the_template_refuses_is_no_form() {
    // A template as some models have it: the first turn after the system prompt is the user's.
    let folder = tempfile::tempdir().unwrap();
    write_tokenizer(folder.path());
    let template = "{%- for message in messages %}\
        {%- if loop.first and message.role == 'assistant' %}{{ raise_exception('begin with a user') }}{%- endif %}\
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = TextModel::load(folder.path()).unwrap();
    let refused = turns(&[('a', "Hello."), ('u', "Hello?"), ('a', "Yes.")]);
    let (_, outcome) = model.encode(&example(refused, Learnt::EveryAssistantTurn), OPTIONS);
    assert_eq!(outcome.findings[0].kind, FindingKind::TemplateRefused);
    assert!(outcome.findings[0].message.contains("begin with a user"), "{}", outcome.findings[0].message);
    // Here only the answer would fit, and the template does not take it alone.
    let messages = turns(&[('u', "A question of some length, so that it has to go."), ('a', "Yes.")]);
    let limit = length(&messages) - 1;
    let (_, outcome) = model.encode(&example(messages, Learnt::EveryAssistantTurn), limited(limit));
    assert_eq!(outcome.findings[0].kind, FindingKind::TargetTooLong);
    assert!(outcome.findings[0].message.contains(&format!("max_seq_length {} would", limit + 1)));
}

#[test]
fn a_text_ends_with_the_models_token_and_is_cut_into_documents_without_loss() {
    let (tokens, encoded) = MODEL.encoded(&text("The chain is dry."), OPTIONS);
    assert_eq!(MODEL.learnt(&tokens), "The chain is dry.<|im_end|>");
    assert_eq!(encoded.documents[0].targets as usize, tokens.len() - 1);
    let (again, _) = MODEL.encoded(&text("The chain is dry.<|im_end|>"), OPTIONS);
    assert_eq!(again, tokens, "it is not added twice");

    let (pieces, outcome) = MODEL.encode(&text("The chain is dry."), limited(4));
    assert_eq!(pieces, tokens);
    let documents = outcome.encoded.unwrap().documents;
    assert!(documents.len() > 1 && documents.iter().all(|document| (2..=4).contains(&document.tokens)));
    assert_eq!(documents.iter().map(|document| document.tokens as usize).sum::<usize>(), tokens.len());
    assert_eq!(outcome.findings[0].kind, FindingKind::TextSplit);
}

#[test]
fn pieces_of_a_text_are_full_and_none_is_a_single_token() {
    assert_eq!(text_pieces(7, 8), [7]);
    assert_eq!(text_pieces(8, 8), [8]);
    assert_eq!(text_pieces(9, 8), [7, 2]);
    assert_eq!(text_pieces(26, 8), [8, 8, 8, 2]);
    assert_eq!(text_pieces(1, 8), [1]);
    assert_eq!(text_pieces(0, 8), [0; 0]);
}

#[test]
fn an_example_that_teaches_nothing_is_left_out_with_a_reason() {
    let (tokens, outcome) = MODEL.encode(&text(""), OPTIONS);
    assert!(tokens.is_empty() && outcome.encoded.is_none());
    assert_eq!(outcome.findings[0].kind, FindingKind::EmptyTarget);
}

#[test]
fn fingerprints_tell_tokens_and_what_is_learnt_of_them_apart() {
    let of =
        |messages: &[(char, &str)], learnt| MODEL.encoded(&example(turns(messages), learnt), OPTIONS).1.fingerprint;
    let messages = [('u', "Q"), ('a', "A"), ('u', "Q"), ('a', "A")];
    let (every, last) = (Learnt::EveryAssistantTurn, Learnt::LastAssistantTurn);
    assert_eq!(of(&messages, every), of(&messages, every));
    assert_ne!(of(&messages, every), of(&messages, last));
    assert_ne!(of(&messages, every), of(&[('u', "Q"), ('a', "A"), ('u', "Q"), ('a', "B")], every));
}

#[test]
fn a_conversation_of_ten_thousand_turns_is_cut_in_no_time() {
    let mut messages = turns(&[('s', "S")]);
    for _ in 0..5_000 {
        messages.extend(turns(&[('u', "Why?"), ('a', "Because.")]));
    }
    // Trying every start would render fifty million turns.
    let (tokens, encoded) = MODEL.encoded(&example(messages, Learnt::LastAssistantTurn), limited(2048));
    assert!(tokens.len() <= 2048 && tokens.len() > 2000);
    assert!(encoded.cut_turns > 9000);
}

fn message(role: char) -> impl Strategy<Value = Message> {
    let content = prop_oneof!["[a-zA-Z ,.?]{1,40}", "\\PC{1,12}", "[ \n]{0,4}[a-zé日🚲]{1,8}[ \n]{0,4}"];
    content.prop_map(move |content| turns(&[(role, &content)]).remove(0))
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let roles = (prop::bool::ANY, prop::collection::vec(prop_oneof![Just('u'), Just('a')], 0..10));
    roles.prop_flat_map(|(system, roles)| {
        let system = if system { vec!['s'] } else { vec![] };
        let roles = system.into_iter().chain(roles).chain(['a']);
        roles.map(message).collect::<Vec<_>>()
    })
}

/// NFC, as the tokenizer's normaliser has it.
fn normalised(text: &str) -> String {
    use unicode_normalization_alignments::UnicodeNormalization;
    text.chars().nfc().map(|(c, _)| c).collect()
}

proptest! {
    #[test]
    fn exactly_the_answers_are_learnt(messages in messages()) {
        let (tokens, _) = MODEL.encoded(&example(messages.clone(), Learnt::EveryAssistantTurn), OPTIONS);
        prop_assert_eq!(MODEL.decode(tokens.iter().copied()), normalised(&rendered(&messages)));
        // A token of the header's line break and the answer's own is learnt whole.
        let learnt = MODEL.learnt(&tokens);
        let mut rest = learnt.as_str();
        for message in messages.iter().filter(|message| message.role == Role::Assistant) {
            let answer = normalised(&answer(message));
            let after = rest.strip_prefix(&answer).or_else(|| rest.strip_prefix('\n')?.strip_prefix(&answer));
            prop_assert!(after.is_some(), "{:?} is not where {:?} begins", answer, rest);
            rest = after.unwrap_or_default();
        }
        prop_assert_eq!(rest, "");
    }

    #[test]
    fn whatever_is_cut_the_answer_stays_and_turns_stay_whole(messages in messages(), limit in 4usize..120) {
        let target = messages.last().unwrap().clone();
        let (tokens, outcome) = MODEL.encode(&example(messages.clone(), Learnt::LastAssistantTurn), limited(limit));
        let whole = length(&messages);
        let alone = length(std::slice::from_ref(&target));
        match outcome.encoded {
            None => {
                prop_assert!(alone > limit);
                prop_assert_eq!(outcome.findings[0].kind, FindingKind::TargetTooLong);
            }
            Some(encoded) => {
                prop_assert!(tokens.len() <= limit);
                prop_assert_eq!(encoded.cut_turns > 0, whole > limit);
                prop_assert_eq!(outcome.findings.len(), usize::from(whole > limit));
                // What is left: the leading system turn or not, then the end of the conversation.
                let text = MODEL.decode(tokens.iter().copied());
                let system = messages.iter().take_while(|m| m.role == Role::System).count();
                let forms = (0..=system).flat_map(|kept| (system..messages.len()).map(move |start| (kept, start)));
                let mut forms = forms.map(|(kept, start)| [&messages[..kept], &messages[start..]].concat());
                let form = forms.find(|form| text == normalised(&rendered(form)));
                prop_assert!(form.is_some(), "{}", text);
                prop_assert_eq!(form.unwrap().len(), messages.len() - encoded.cut_turns as usize);
                prop_assert!(MODEL.learnt(&tokens).trim_start().ends_with(normalised(&answer(&target)).trim_start()));
            }
        }
    }
}
