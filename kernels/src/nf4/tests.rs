use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::cpu;
use super::*;
use crate::fast_math::Level;

// === what the tests share ===

fn fixture(path: &str) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    match view.dtype() {
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::BF16 => view
            .data()
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16))
            .collect(),
        other => panic!("{name} is {other:?}"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Compares values by their bits, and says where they part.
#[track_caller]
fn assert_same(name: &str, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{name}: length");
    if let Some(index) = (0..ours.len()).find(|&index| ours[index].to_bits() != expected[index].to_bits()) {
        panic!("{name}: value {index} is {:e}, expected {:e}", ours[index], expected[index]);
    }
}

/// Deterministic values of a normal-like distribution.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| uniform() + uniform() + uniform()).collect()
}

/// Checks everything that one golden says about a double-quantised matrix: bytes, scales and decoded values.
fn check_double(name: &str, input: &[f32], file: &SafeTensors, tag: &str, packed: &str) -> (usize, usize) {
    let shape = file.tensor(&format!("{tag}.dequant_f32")).unwrap().shape().to_vec();
    let matrix = Nf4Matrix::quantize(input, shape[0], shape[1], true).unwrap();
    let stored = file.tensor(packed).unwrap().data();
    assert_eq!(matrix.packed(), stored, "{name}: bytes");
    let golden_codes = file.tensor(&format!("{tag}.absmax_u8")).unwrap().data();
    let emulated = Nf4Matrix::quantize_as_bitsandbytes_cpu(input, shape[0], shape[1]).unwrap();
    let golden_nested = floats(file, &format!("{tag}.nested_absmax"));
    let golden_offset = floats(file, &format!("{tag}.nested_offset"))[0];
    let Scales::Double { codes, nested, offset } = matrix.scales() else { panic!("{name}: plain scales") };
    assert_eq!(offset.to_bits(), golden_offset.to_bits(), "{name}: offset {offset} {golden_offset}");
    assert_eq!(bits(nested), bits(&golden_nested), "{name}: nested absmax");
    let Scales::Double { codes: emulated_codes, .. } = emulated.scales() else { panic!("{name}: plain scales") };
    assert_eq!(emulated_codes, golden_codes, "{name}: codes of the scales");
    let different: Vec<_> = codes.iter().zip(golden_codes).filter(|(ours, theirs)| ours != theirs).collect();
    for (ours, theirs) in &different {
        assert!(ours.abs_diff(**theirs) <= 1, "{name}: code {ours}, golden {theirs}");
    }

    let scales = Scales::Double { codes: golden_codes.to_vec(), nested: golden_nested, offset: golden_offset };
    let given = Nf4Matrix::from_parts(shape[0], shape[1], stored.to_vec(), scales).unwrap();
    assert_same(&format!("{name}: absmax"), &given.absmax(), &floats(file, &format!("{tag}.absmax_dequant")));
    let golden_values = floats(file, &format!("{tag}.dequant_f32"));
    assert_same(&format!("{name}: values"), &given.dequantize_as_bitsandbytes_cpu(), &golden_values);
    let error = |values: &[f32]| values.iter().zip(input).map(|(ours, x)| f64::from(ours - x).abs()).sum::<f64>();
    if shape[1] % 16 == 0 && shape[1] % BLOCK != 0 {
        // Only our own decoding is near to what was quantised.
        assert!(error(&given.dequantize()) < 0.8 * error(&golden_values), "{name}");
    } else {
        assert_same(&format!("{name}: values"), &given.dequantize(), &golden_values);
    }
    (different.len(), codes.len())
}

// === goldens ===

#[test]
fn constants_are_those_of_bitsandbytes() {
    let facts: serde_json::Value = serde_json::from_slice(&fixture("nf4/nf4_facts.json")).unwrap();
    let parse = |name: &str| -> Vec<u32> {
        let texts = facts[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
        texts.map(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()).collect()
    };
    let codes: Vec<f32> = facts["nf4_code"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!(bits(&CODEBOOK), bits(&codes));
    assert_eq!(bits(&THRESHOLDS), parse("nf4_thresholds_bits"));
    assert_eq!(bits(dynamic_map()), parse("dynamic_map_bits"));
}

#[test]
fn unit_goldens_are_met_to_the_bit() {
    let bytes = fixture("nf4/nf4_golden.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cases: Vec<String> =
        file.names().iter().filter_map(|name| name.strip_suffix(".input").map(str::to_owned)).collect();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let input = floats(&file, &format!("{case}.input"));
        let shape = file.tensor(&format!("{case}.input")).unwrap().shape().to_vec();
        let matrix = Nf4Matrix::quantize(&input, shape[0], shape[1], false).unwrap();
        assert_eq!(matrix.packed(), file.tensor(&format!("{case}.plain.packed")).unwrap().data(), "{case}");
        assert_same(&case, &matrix.absmax(), &floats(&file, &format!("{case}.plain.absmax_f32")));
        assert_same(&case, &matrix.dequantize(), &floats(&file, &format!("{case}.plain.dequant_f32")));
        let tag = format!("{case}.dq");
        let (different, total) = check_double(&case, &input, &file, &tag, &format!("{tag}.packed"));
        assert!(different * 100 <= total, "{case}: {different} of {total} nested codes differ");
    }
}

#[test]
fn quantised_models_are_met_to_the_bit() {
    for model in ["qwen2_moe_s1", "qwen3_moe_s1", "qwen3_next_s1"] {
        let (base, golden) =
            (fixture(&format!("{model}/base/model.safetensors")), fixture(&format!("{model}/golden_nf4.safetensors")));
        let (base, golden) = (SafeTensors::deserialize(&base).unwrap(), SafeTensors::deserialize(&golden).unwrap());
        let modules: Vec<String> = golden
            .names()
            .iter()
            .filter_map(|name| Some(name.strip_prefix("q.")?.strip_suffix(".dequant_f32")?.to_owned()))
            .collect();
        assert!(modules.len() >= 3, "{model}: {modules:?}");
        let (mut different, mut total) = (0, 0);
        for module in modules {
            let input = floats(&base, &format!("{module}.weight"));
            let tag = format!("q.{module}");
            let counts = check_double(&module, &input, &golden, &tag, &format!("{tag}.weight"));
            different += counts.0;
            total += counts.1;
        }
        assert!(different * 100 <= total, "{model}: {different} of {total} nested codes differ");
    }
}

#[test]
fn a_serialised_linear_decodes() {
    let bytes = fixture("nf4/bnb_linear4bit_96x128.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let golden_bytes = fixture("nf4/nf4_golden.safetensors");
    let golden = SafeTensors::deserialize(&golden_bytes).unwrap();
    let state = file.tensor("linear.weight.quant_state.bitsandbytes__nf4").unwrap();
    let state: serde_json::Value = serde_json::from_slice(state.data()).unwrap();
    let scales = Scales::Double {
        codes: file.tensor("linear.weight.absmax").unwrap().data().to_vec(),
        nested: floats(&file, "linear.weight.nested_absmax"),
        offset: state["nested_offset"].as_f64().unwrap() as f32,
    };
    let packed = file.tensor("linear.weight").unwrap().data().to_vec();
    let matrix = Nf4Matrix::from_parts(96, 128, packed, scales).unwrap();
    let input = floats(&golden, "normal_96x128_bf16.input");
    let rounded: Vec<f32> = input.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect();
    let ours = Nf4Matrix::quantize(&rounded, 96, 128, true).unwrap();
    assert_eq!(matrix.packed(), ours.packed());
    assert_eq!(matrix, Nf4Matrix::quantize_as_bitsandbytes_cpu(&rounded, 96, 128).unwrap());
    // A nested code of the file may be one off the nearest, which shows in the scale of its whole block.
    let (theirs, ours) = (matrix.absmax(), ours.absmax());
    let different = theirs.iter().zip(&ours).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert!(different <= ours.len() / 100, "{different} of {} scales", ours.len());
    assert!(theirs.iter().zip(&ours).all(|(a, b)| (a - b).abs() < 0.02 * b));
}

// === parity ===

#[test]
fn every_level_quantises_as_the_reference() {
    for (seed, count) in (1..200).chain([TASKS - 1, TASKS, TASKS + 1, 3 * TASKS + 77]).enumerate() {
        let mut values = random(count, seed as u64);
        // Magnitudes from denormal to large, and whole blocks of zeros.
        for (index, block) in values.chunks_mut(50).enumerate() {
            let factor = [1.0, 0.0, 1e-39, 1e30, 3e-30][index % 5];
            block.iter_mut().for_each(|value| *value *= factor);
        }
        let expected = reference::quantize(&values);
        for level in Level::available() {
            let (packed, absmax) = cpu::quantize_at(level, &values).unwrap();
            assert_eq!((packed, bits(&absmax)), (expected.0.clone(), bits(&expected.1)), "{count} at {level:?}");
        }
    }
}

const TASKS: usize = 256 * BLOCK;

#[test]
fn values_at_the_edge_between_two_codes_follow_the_reference() {
    // Here multiplying by the reciprocal (whole blocks) and dividing (a partial one) give different codes.
    let scale = random(400, 77);
    for (seed, count) in (0..400).map(|seed| (seed, if seed % 2 == 0 { BLOCK } else { 45 })) {
        let absmax = 0.1 + scale[seed].abs();
        let mut values: Vec<f32> = (0..count).map(|i| THRESHOLDS[i % 15] * absmax).collect();
        values.iter_mut().skip(15).step_by(2).for_each(|value| *value = value.next_up());
        values[0] = absmax;
        let expected = reference::quantize(&values).0;
        for level in Level::available() {
            assert_eq!(cpu::quantize_at(level, &values).unwrap().0, expected, "{seed} at {level:?}");
        }
    }
}

#[test]
fn double_quantisation_follows_the_reference() {
    for (seed, count) in [64, 65, 64 * 256, 64 * 257, 64 * 1000 + 3].into_iter().enumerate() {
        let matrix = Nf4Matrix::quantize(&random(count, seed as u64), 1, count, true).unwrap();
        let plain = Nf4Matrix::quantize(&random(count, seed as u64), 1, count, false).unwrap();
        let Scales::Double { codes, nested, offset } = matrix.scales() else { panic!("plain scales") };
        let expected = reference::quantize_scales(&plain.absmax(), *offset);
        assert_eq!((codes, bits(nested)), (&expected.0, bits(&expected.1)), "{count}");
    }
}

#[test]
fn every_level_decodes_any_range_as_the_reference() {
    for (rows, columns) in [(1, 1), (3, 5), (5, 27), (7, 64), (2, 200), (9, 130), (33, 96), (4, 512)] {
        let values = random(rows * columns, (rows * 31 + columns) as u64);
        for double in [false, true] {
            let matrix = Nf4Matrix::quantize(&values, rows, columns, double).unwrap();
            let absmax = matrix.absmax();
            let expected = bits(&reference::dequantize(matrix.packed(), &absmax, rows * columns));
            assert_eq!(bits(&matrix.dequantize()), expected);
            for (start, end) in (0..=rows).flat_map(|start| (start..=rows).map(move |end| (start, end))) {
                let mut out = vec![f32::NAN; (end - start) * columns];
                matrix.dequantize_rows_into(start..end, &mut out);
                assert_eq!(bits(&out), expected[start * columns..end * columns], "rows {start}..{end}");
                for level in Level::available() {
                    out.fill(f32::NAN);
                    cpu::dequantize_at(level, matrix.packed(), |block| absmax[block], start * columns, &mut out);
                    assert_eq!(bits(&out), expected[start * columns..end * columns], "{start}..{end} at {level:?}");
                }
            }
        }
    }
}

#[test]
fn decoding_stays_near_the_input() {
    let values = random(64 * 300, 9);
    let decoded = Nf4Matrix::quantize(&values, 300, 64, true).unwrap().dequantize();
    for (block, (ours, input)) in decoded.chunks(64).zip(values.chunks(64)).enumerate() {
        let absmax = input.iter().fold(0.0f32, |greatest, x| greatest.max(x.abs()));
        for (ours, input) in ours.iter().zip(input) {
            // Half of the widest gap of the codebook (-1 to -0.696), and a little for the 8-bit scale.
            assert!((ours - input).abs() <= 0.17 * absmax, "block {block}: {ours} for {input}");
        }
    }
}

// === refusals ===

#[test]
fn what_is_not_finite_is_named() {
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 70), (f32::NEG_INFINITY, 129), (f32::NAN, TASKS + 5)] {
        let mut values = random(TASKS + 70, 3);
        values[at] = bad;
        values[TASKS + 69] = f32::NAN;
        let error = Nf4Matrix::quantize(&values, values.len() / 2, 2, true).unwrap_err().to_string();
        assert!(error.contains(&format!("row {}, column {} is {bad}", at / 2, at % 2)), "{error}");
    }
    // A mean that overflows.
    assert!(Nf4Matrix::quantize(&[3e38; 256], 4, 64, true).is_err());
    assert!(Nf4Matrix::quantize(&[3e38; 256], 4, 64, false).is_ok());
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let build = |rows, columns, packed: usize, scales| Nf4Matrix::from_parts(rows, columns, vec![0; packed], scales);
    let plain = |count| Scales::Plain(vec![1.0; count]);
    let double = |codes, nested, offset| Scales::Double { codes: vec![0; codes], nested: vec![1.0; nested], offset };
    assert!(build(3, 43, 65, plain(3)).is_ok());
    assert!(build(3, 43, 65, double(3, 1, 0.0)).is_ok());
    assert!(build(3, 43, 64, plain(3)).is_err());
    assert!(build(3, 43, 66, plain(3)).is_err());
    assert!(build(3, 43, 65, plain(2)).is_err());
    assert!(build(3, 43, 65, double(2, 1, 0.0)).is_err());
    assert!(build(3, 43, 65, double(3, 2, 0.0)).is_err());
    assert!(build(3, 43, 65, double(3, 1, f32::NAN)).is_err());
    assert!(build(3, 43, 65, Scales::Plain(vec![1.0, f32::INFINITY, 1.0])).is_err());
    assert!(build(0, 43, 0, plain(0)).is_err());
    assert!(build(usize::MAX, 2, 0, plain(0)).is_err());
    assert!(build(1 << 62, 2, 0, plain(0)).is_err());
    assert!(Nf4Matrix::quantize(&[0.0; 6], 2, 4, false).is_err());
    assert!(Nf4Matrix::quantize(&[], 0, 4, false).is_err());
}
