//! Token by token with a cache, a model says what it says of the whole text at once; without its adapters it is the base.

use brightrun_kernels::Documents;
use brightrun_tests::toy::{Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::config::Family;
use brightrun_trainer::model::Model;
use brightrun_trainer::weights::BasePrecision;

/// Long enough for two chunks of the delta rule and a growing table of rotations.
const TOKENS: usize = 150;
/// How far logits may differ.
const TOLERANCE: f32 = 1e-4;

/// The logits of every position of one text, in one pass.
fn at_once(model: &Model, tokens: &[u32], adapted: bool) -> Vec<Vec<f32>> {
    let pass = model.pass(&Documents::from_lengths(&[tokens.len()]).unwrap(), None).unwrap();
    let pass = pass.without_graph().with_adapters(adapted);
    let mut hidden = model.embed(tokens).unwrap();
    for layer in model.layers() {
        hidden = layer.forward(&hidden, &pass).unwrap().hidden;
    }
    model.logits(&hidden, &pass).unwrap().to_vec2().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

fn token_by_token_is_at_once(family: Family) {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::write(dir.path(), &Shape { layers: 4, ..Shape::tiny(family) }, 3).unwrap();
    let adapters = toy.adapters(&toy.plan(toy.every_linear()).unwrap(), 4).unwrap();
    let model = toy.model(&adapters).unwrap();
    let tokens = &toy.sequences(&[TOKENS], 1.0, 5)[0].tokens;
    for adapted in [true, false] {
        let expected = at_once(&model, tokens, adapted);
        // Prompts shorter than the convolution, of about a chunk, and longer.
        for prompt in [1, 2, 63, 64, 65, 100] {
            let mut cache = model.cache();
            let mut logits = model.continued(&tokens[..prompt], &mut cache, adapted).unwrap();
            for at in prompt..=TOKENS {
                let difference = largest_difference(&logits, &expected[at - 1]);
                assert!(difference <= TOLERANCE, "{family:?}, prompt of {prompt}, token {at}: {difference:e}");
                assert_eq!(best(&logits), best(&expected[at - 1]));
                if let Some(token) = tokens.get(at) {
                    logits = model.continued(&[*token], &mut cache, adapted).unwrap();
                }
            }
            assert_eq!(cache.tokens(), TOKENS);
        }
    }
    // Without its adapters, the model is bit for bit the one that never had any.
    let base = Model::load(&toy.config, &toy.checkpoint, &BasePrecision::Full, &Adapters::none()).unwrap();
    let without = at_once(&model, tokens, false);
    assert_eq!(without, at_once(&base, tokens, true));
    assert!(largest_difference(&without[9], &at_once(&model, tokens, true)[9]) > 0.1);
}

#[test]
fn qwen3_next_token_by_token_is_at_once() {
    token_by_token_is_at_once(Family::Qwen3Next);
}

#[test]
fn qwen3_moe_token_by_token_is_at_once() {
    token_by_token_is_at_once(Family::Qwen3Moe);
}

#[test]
fn qwen2_moe_token_by_token_is_at_once() {
    token_by_token_is_at_once(Family::Qwen2Moe);
}

#[test]
fn a_conversation_longer_than_the_model_and_a_foreign_cache_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::write(dir.path(), &Shape::tiny(Family::Qwen3Next), 3).unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let other = Toy::write(other_dir.path(), &Shape::tiny(Family::Qwen3Moe), 3).unwrap();
    let [model, other] = [&toy, &other].map(|toy| toy.model(&Adapters::none()).unwrap());
    let mut cache = model.cache();
    let error = model.continued(&[1; 5000], &mut cache, false).unwrap_err().to_string();
    assert!(error.contains("5000 tokens is longer than the model's 4096 positions"), "{error}");
    assert!(model.continued(&[], &mut cache, false).is_err());
    let error = model.continued(&[1], &mut other.cache(), false).unwrap_err().to_string();
    assert!(error.contains("the cache is another model's"), "{error}");
}
