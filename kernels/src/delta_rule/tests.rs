//! Chunked `f32` against token by token `f64`, at lengths around the chunk size, alone and packed.

use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::reference::{Head, backward, forward};
use super::{Parameters, State, delta_rule, delta_rule_continued};
use crate::Documents;
use crate::conv::HeadGroups;
use crate::fast_math::reference::sigmoid;
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

fn parameters(key_heads: usize, value_heads: usize, key_dim: usize, value_dim: usize) -> Parameters {
    let a_log: Vec<f32> = narrow(&uniform(value_heads, 11)).iter().map(|v| 2.0 * v - 1.0).collect();
    Parameters {
        groups: HeadGroups { key_heads, value_heads, key_dim, value_dim },
        a_log: a_log.into(),
        dt_bias: narrow(&uniform(value_heads, 12)).into(),
    }
}

fn softplus(x: f64) -> f64 {
    x.exp().ln_1p()
}

/// Output and both gradients of the whole op, out of the reference's heads.
fn expected(p: &Parameters, qkv: &[f64], ba: &[f64], documents: &Documents, dout: &[f64]) -> [Vec<f64>; 3] {
    let g = &p.groups;
    let (dk, dv, heads, per_key) = (g.key_dim, g.value_dim, g.value_heads, g.value_heads / g.key_heads);
    let width = p.qkv_width();
    let (mut out, mut dqkv, mut dba) = (vec![0.0; dout.len()], vec![0.0; qkv.len()], vec![0.0; ba.len()]);
    for document in documents.iter() {
        for head in 0..heads {
            let key_head = head / per_key;
            let rows = || document.start..document.end;
            let cut = |offset: usize, size: usize| -> Vec<f64> {
                rows().flat_map(|t| qkv[t * width + offset..][..size].to_vec()).collect()
            };
            let (q_at, k_at, v_at) = (key_head * dk, g.key_heads * dk + key_head * dk, p.value_offset(head));
            let (q_raw, k_raw, v) = (cut(q_at, dk), cut(k_at, dk), cut(v_at, dv));
            let inverse = |x: &[f64]| 1.0 / (x.iter().map(|v| v * v).sum::<f64>() + 1e-6).sqrt();
            let scale = (dk as f64).powf(-0.5);
            let q: Vec<f64> =
                q_raw.chunks(dk).flat_map(|r| r.iter().map(|x| x * inverse(r) * scale).collect::<Vec<_>>()).collect();
            let k: Vec<f64> =
                k_raw.chunks(dk).flat_map(|r| r.iter().map(|x| x * inverse(r)).collect::<Vec<_>>()).collect();
            let gate = |t: usize| {
                let (at_b, at_a) = p.gate_offsets(t, head);
                (ba[at_b], ba[at_a] + f64::from(p.dt_bias[head]))
            };
            let rate = f64::from(p.a_log[head]).exp();
            let decay: Vec<f64> = rows().map(|t| -rate * softplus(gate(t).1)).collect();
            let beta: Vec<f64> = rows().map(|t| sigmoid(gate(t).0)).collect();
            let one = Head {
                tokens: document.len(),
                key_dim: dk,
                value_dim: dv,
                q: &q,
                k: &k,
                v: &v,
                g: &decay,
                beta: &beta,
            };
            let o = forward(&one);
            let slice: Vec<f64> = rows().flat_map(|t| dout[(t * heads + head) * dv..][..dv].to_vec()).collect();
            let grad = backward(&one, &slice);
            for (i, t) in rows().enumerate() {
                out[(t * heads + head) * dv..][..dv].copy_from_slice(&o[i * dv..][..dv]);
                dqkv[t * width + v_at..][..dv].copy_from_slice(&grad.v[i * dv..][..dv]);
                for (raw, d, at, scale) in [(&q_raw, &grad.q, q_at, scale), (&k_raw, &grad.k, k_at, 1.0)] {
                    let (x, dy) = (&raw[i * dk..][..dk], &d[i * dk..][..dk]);
                    let s = inverse(x);
                    let along: f64 = x.iter().zip(dy).map(|(x, d)| x * d * scale).sum();
                    for c in 0..dk {
                        dqkv[t * width + at + c] += s * dy[c] * scale - x[c] * s.powi(3) * along;
                    }
                }
                let (b, a) = gate(t);
                let (at_b, at_a) = p.gate_offsets(t, head);
                dba[at_b] = grad.beta[i] * sigmoid(b) * (1.0 - sigmoid(b));
                dba[at_a] = -grad.g[i] * rate * sigmoid(a);
            }
        }
    }
    [out, dqkv, dba]
}

fn check(p: &Parameters, lengths: &[usize]) {
    let documents = Documents::from_lengths(lengths).unwrap();
    let n = documents.tokens();
    let (width, heads) = (p.qkv_width(), p.groups.value_heads);
    let (qkv, ba, dout) =
        (uniform(n * width, 1), uniform(n * 2 * heads, 2), uniform(n * heads * p.groups.value_dim, 3));
    let [out, dqkv, dba] = expected(p, &qkv, &ba, &documents, &dout);

    let qkv =
        Var::from_tensor(&Tensor::from_vec(narrow(&qkv), (n, width), &candle_core::Device::Cpu).unwrap()).unwrap();
    let ba =
        Var::from_tensor(&Tensor::from_vec(narrow(&ba), (n, 2 * heads), &candle_core::Device::Cpu).unwrap()).unwrap();
    let found = delta_rule(&qkv, &ba, p, &documents).unwrap();
    let what = format!("{lengths:?}");
    assert_close(&format!("{what} out"), &found.flatten_all().unwrap().to_vec1().unwrap(), &out, 2e-6);
    let seed = Tensor::from_vec(narrow(&dout), found.dims(), found.device()).unwrap();
    let grads = (found * seed).unwrap().sum_all().unwrap().backward().unwrap();
    let grad = |v: &Var| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close(&format!("{what} dqkv"), &grad(&qkv), &dqkv, 5e-6);
    assert_close(&format!("{what} dba"), &grad(&ba), &dba, 5e-6);
}

#[test]
fn equals_the_recurrence_around_the_chunk_size() {
    for length in [1, 2, 63, 64, 65, 127, 128, 129, 200] {
        check(&parameters(2, 4, 8, 12), &[length]);
    }
}

#[test]
fn equals_the_recurrence_for_packed_documents() {
    check(&parameters(2, 2, 16, 8), &[64, 1, 65, 30, 130, 63]);
    check(&parameters(1, 3, 5, 7), &[3, 129, 70]);
}

/// A document in pieces against the recurrence over all of it: single tokens, pieces round the chunk size, and both.
#[test]
fn pieces_with_a_kept_state_equal_the_whole() {
    let p = parameters(2, 4, 8, 12);
    let (width, heads, value) = (p.qkv_width(), 4, 12);
    for pieces in [&[1; 70][..], &[64, 1, 1, 1], &[3, 63, 65, 1, 128], &[130, 1, 1]] {
        let n: usize = pieces.iter().sum();
        let (qkv, ba) = (uniform(n * width, 1), uniform(n * 2 * heads, 2));
        let documents = Documents::from_lengths(&[n]).unwrap();
        let [out, ..] = expected(&p, &qkv, &ba, &documents, &vec![0.0; n * heads * value]);
        let mut state = State::new(&p.groups);
        let (mut found, mut at) = (Vec::new(), 0);
        for &piece in pieces {
            let cut = |values: &[f64], width: usize| {
                let values = narrow(&values[at * width..(at + piece) * width]);
                Tensor::from_vec(values, (piece, width), &candle_core::Device::Cpu).unwrap()
            };
            let next = delta_rule_continued(&cut(&qkv, width), &cut(&ba, 2 * heads), &p, &mut state).unwrap();
            found.extend(next.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            at += piece;
        }
        assert_close(&format!("{pieces:?}"), &found, &out, 2e-6);
    }
}

#[test]
fn a_state_of_another_layer_is_refused() {
    let p = parameters(2, 4, 8, 8);
    let zeros = |width: usize| Tensor::zeros((3, width), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let mut other = State::new(&HeadGroups { value_dim: 4, ..p.groups });
    let error = delta_rule_continued(&zeros(p.qkv_width()), &zeros(8), &p, &mut other).unwrap_err().to_string();
    assert!(error.contains("state"), "{error}");
}

#[test]
fn a_document_does_not_see_the_one_before() {
    let p = parameters(2, 4, 8, 8);
    let (width, heads) = (p.qkv_width(), 4);
    let run = |lengths: &[usize], from: usize| {
        let n: usize = lengths.iter().sum();
        let qkv = narrow(&uniform(200 * width, 1))[from * width..(from + n) * width].to_vec();
        let ba = narrow(&uniform(200 * 2 * heads, 2))[from * 2 * heads..(from + n) * 2 * heads].to_vec();
        let qkv = Tensor::from_vec(qkv, (n, width), &candle_core::Device::Cpu).unwrap();
        let ba = Tensor::from_vec(ba, (n, 2 * heads), &candle_core::Device::Cpu).unwrap();
        let out = delta_rule(&qkv, &ba, &p, &Documents::from_lengths(lengths).unwrap()).unwrap();
        out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (packed, alone, leaking) = (run(&[90, 110], 0), run(&[110], 90), run(&[200], 0));
    let tail = 90 * heads * 8;
    assert_eq!(packed[tail..], alone[..]);
    assert_ne!(leaking[tail..], alone[..], "without the boundary the state leaks: the test can see it");
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    let (n, dk, dv) = (5, 3, 2);
    let (q, k, v) = (uniform(n * dk, 1), uniform(n * dk, 2), uniform(n * dv, 3));
    let g: Vec<f64> = uniform(n, 4).iter().map(|x| -x.abs()).collect();
    let beta: Vec<f64> = uniform(n, 5).iter().map(|x| 0.5 + 0.4 * x).collect();
    let dout = uniform(n * dv, 6);
    let loss = |q: &[f64], k: &[f64], v: &[f64], g: &[f64], beta: &[f64]| -> f64 {
        let head = Head { tokens: n, key_dim: dk, value_dim: dv, q, k, v, g, beta };
        forward(&head).iter().zip(&dout).map(|(o, d)| o * d).sum()
    };
    let grad =
        backward(&Head { tokens: n, key_dim: dk, value_dim: dv, q: &q, k: &k, v: &v, g: &g, beta: &beta }, &dout);
    assert_derivative("q", &q, &grad.q, |x| loss(x, &k, &v, &g, &beta));
    assert_derivative("k", &k, &grad.k, |x| loss(&q, x, &v, &g, &beta));
    assert_derivative("v", &v, &grad.v, |x| loss(&q, &k, x, &g, &beta));
    assert_derivative("g", &g, &grad.g, |x| loss(&q, &k, &v, x, &beta));
    assert_derivative("beta", &beta, &grad.beta, |x| loss(&q, &k, &v, &g, x));
}

#[test]
fn wrong_shapes_are_named() {
    let p = parameters(2, 4, 8, 8);
    let documents = Documents::from_lengths(&[3]).unwrap();
    let qkv = Tensor::zeros((3, p.qkv_width() + 1), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let ba = Tensor::zeros((3, 8), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let error = delta_rule(&qkv, &ba, &p, &documents).unwrap_err().to_string();
    assert!(error.contains("qkv"), "{error}");
    let short = Parameters { a_log: Arc::from([0.0f32; 3]), ..p };
    let qkv = Tensor::zeros((3, short.qkv_width()), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    assert!(delta_rule(&qkv, &ba, &short, &documents).unwrap_err().to_string().contains("A_log"));
}
