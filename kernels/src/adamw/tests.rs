use super::cpu::Scalars;
use super::*;
use crate::fast_math::Level;

const HYPER: Hyper = Hyper { learning_rate: 2e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| uniform() + uniform()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

// === 32-bit moments ===

/// `(β1, decay, parameters, m, v)` after 5 steps of `torch.optim.AdamW` (2.15, CPU) with the gradients below times 0.7.
type Golden = (f64, f64, [u32; 19], [u32; 19], [u32; 19]);

#[rustfmt::skip]
const TORCH: [Golden; 3] = [
    (0.9, 0.0,
        [0xbf0e9d4f, 0x3f0ded47, 0x3efea75d, 0x3ee33d7a, 0x3ebf702f, 0x3e9c6271, 0x3e836c3b, 0x3e43904d, 0x3df2f99f,
         0x3d6df65f, 0x3b9864f9, 0xbd8a1c31, 0xbe0363f5, 0xbe39e9c9, 0xbe829764, 0xbea0f363, 0xbebcb30e, 0xbedf4918, 0xbf01bb9a],
        [0xbb59fc6d, 0x3b9506bc, 0x3a81919a, 0xbbd13577, 0x3ac33df2, 0x3be8a419, 0xbc00f3cc, 0xbacd9f09, 0x3b846cdb,
         0x3bb6b745, 0xbaeb8a5c, 0x3a80d66f, 0x3b25000d, 0xbb9f19d8, 0x3b45d639, 0xba0db9c8, 0xbbcfcbf6, 0xb826119d, 0x3bb6887b],
        [0x369b4818, 0x3612e3f4, 0x373549f4, 0x37076ca0, 0x35b673bd, 0x370ad376, 0x3755f9dd, 0x35f1989d, 0x36a64f23,
         0x3785d6e8, 0x3662f5b8, 0x36432b3d, 0x374cc21f, 0x36cfbce7, 0x35d8ceb1, 0x37232593, 0x372c2070, 0x35beb70b, 0x36d8a73e],
    ),
    (0.9, 0.1,
        [0xbf0e78a9, 0x3f0dc8ad, 0x3efe661b, 0x3ee303be, 0x3ebf3efe, 0x3e9c39f5, 0x3e834b0b, 0x3e435e9e, 0x3df2b9e0,
         0x3d6db76b, 0x3b984e05, 0xbd89f9da, 0xbe0342a9, 0xbe39b977, 0xbe827668, 0xbea0ca3d, 0xbebc825b, 0xbedf0ff6, 0xbf019aa1],
        [0xbb59fc6d, 0x3b9506bc, 0x3a81919a, 0xbbd13577, 0x3ac33df2, 0x3be8a419, 0xbc00f3cc, 0xbacd9f09, 0x3b846cdb,
         0x3bb6b745, 0xbaeb8a5c, 0x3a80d66f, 0x3b25000d, 0xbb9f19d8, 0x3b45d639, 0xba0db9c8, 0xbbcfcbf6, 0xb826119d, 0x3bb6887b],
        [0x369b4818, 0x3612e3f4, 0x373549f4, 0x37076ca0, 0x35b673bd, 0x370ad376, 0x3755f9dd, 0x35f1989d, 0x36a64f23,
         0x3785d6e8, 0x3662f5b8, 0x36432b3d, 0x374cc21f, 0x36cfbce7, 0x35d8ceb1, 0x37232593, 0x372c2070, 0x35beb70b, 0x36d8a73e],
    ),
    (0.4, 0.01,
        [0xbf0f4d52, 0x3f0e37aa, 0x3eff7cf7, 0x3ee1d601, 0x3ebf50b6, 0x3e9da9ed, 0x3e81f080, 0x3e420a49, 0x3df7fa0e,
         0x3d765dd7, 0x3afabb8e, 0xbd85c155, 0xbe017f15, 0xbe3caf00, 0xbe8245fa, 0xbea02cbd, 0xbebe2d4e, 0xbedfbfaf, 0xbf0113f9],
        [0xba6d9381, 0x3a9d10af, 0xb794a2c3, 0xbb701d18, 0xbacc5fc3, 0x3b06a875, 0x3b456821, 0xbb8d740c, 0xba383f0c,
         0x3b86f587, 0x39f7b9dd, 0xbb62c7fb, 0x3ab265b0, 0xbb15c0fb, 0xb93d3c34, 0xbab70ac1, 0x3b8fe21e, 0xbb408bfd, 0x3a313167],
        [0x369b4818, 0x3612e3f4, 0x373549f4, 0x37076ca0, 0x35b673bd, 0x370ad376, 0x3755f9dd, 0x35f1989d, 0x36a64f23,
         0x3785d6e8, 0x3662f5b8, 0x36432b3d, 0x374cc21f, 0x36cfbce7, 0x35d8ceb1, 0x37232593, 0x372c2070, 0x35beb70b, 0x36d8a73e],
    ),
];

#[test]
fn steps_are_those_of_pytorch() {
    for (beta1, weight_decay, parameters, golden_m, golden_v) in TORCH {
        let hyper = Hyper { beta1, weight_decay, ..HYPER };
        let mut ours: Vec<f32> = (0..19).map(|i| ((i * 37) % 19 - 9) as f32 / 16.0).collect();
        let mut moments = Moments::full(19);
        for t in 1..=5 {
            let gradient: Vec<f32> = (0..19).map(|i| ((i * 7 + t * 5) % 23 - 11) as f32 / (32 << t) as f32).collect();
            step(&mut ours, &gradient, &mut moments, t as u64, 0.7, &hyper).unwrap();
        }
        let Moments::Full { m, v } = &moments else { unreachable!() };
        assert_eq!((bits(m), bits(v)), (golden_m.to_vec(), golden_v.to_vec()), "moments, beta1 {beta1}");
        // PyTorch's vector square root may be one ulp off, which a small parameter shows.
        for (i, (ours, golden)) in bits(&ours).into_iter().zip(parameters).enumerate() {
            assert!(ours.abs_diff(golden) <= 1, "parameter {i}, beta1 {beta1}: {ours:08x} {golden:08x}");
        }
    }
}

#[test]
fn full_steps_follow_the_reference() {
    for (seed, count) in [1, 7, 64, 1000, 16_384, 16_385, 50_001].into_iter().enumerate() {
        let mut ours = random(count, seed as u64);
        let mut expected: Vec<f64> = ours.iter().copied().map(f64::from).collect();
        let (mut m64, mut v64) = (vec![0f64; count], vec![0f64; count]);
        let mut moments = Moments::full(count);
        for t in 1..=8 {
            let gradient = random(count, 100 * seed as u64 + t);
            step(&mut ours, &gradient, &mut moments, t, 0.5, &HYPER).unwrap();
            reference::step(&mut expected, &gradient, (&mut m64, &mut v64), t as i32, 0.5, &HYPER);
        }
        let Moments::Full { m, v } = &moments else { unreachable!() };
        for i in 0..count {
            // Parameters and first moments can cancel: their roundings are of the size of their terms.
            assert!((f64::from(m[i]) - m64[i]).abs() < 3e-7, "m {i}: {} {}", m[i], m64[i]);
            assert!((f64::from(v[i]) - v64[i]).abs() <= 1e-6 * v64[i], "v {i}: {} {}", v[i], v64[i]);
            assert!((f64::from(ours[i]) - expected[i]).abs() < 1e-6, "p {i}: {} {}", ours[i], expected[i]);
        }
    }
}

#[test]
fn every_level_and_any_number_of_threads_give_the_same_bits() {
    let (start, gradient) = (random(70_003, 1), random(70_003, 2));
    let scalars = Scalars::new(3, 0.9, &HYPER).unwrap();
    let run = |level: Level, threads: usize| {
        let (mut parameters, mut m, mut v) = (start.clone(), vec![0.1; start.len()], vec![0.2; start.len()]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cpu::step_full(&mut parameters, &gradient, &mut m, &mut v, &scalars.at(level)));
        (bits(&parameters), bits(&m), bits(&v))
    };
    let expected = run(Level::Portable, 1);
    for level in Level::available() {
        for threads in [1, 3] {
            assert!(run(level, threads) == expected, "{level:?}, {threads} threads");
        }
    }
}

// === 8-bit moments ===

fn decoded(moments: &Moments) -> (Vec<f32>, Vec<f32>) {
    let Moments::Blockwise { m, m_scale, v, v_scale } = moments else { unreachable!() };
    let decode = |codes: &[u8], scales: &[f32], map: &DynamicMap| {
        codes.iter().enumerate().map(|(i, &code)| map.codes()[usize::from(code)] * scales[i / MOMENT_BLOCK]).collect()
    };
    (decode(m, m_scale, DynamicMap::signed()), decode(v, v_scale, DynamicMap::unsigned()))
}

#[test]
fn a_blockwise_step_is_a_full_step_and_the_nearest_codes() {
    for (seed, count) in [1, 255, 256, 257, 16_384, 20_003].into_iter().enumerate() {
        let mut moments = Moments::blockwise(count);
        let mut ours = random(count, seed as u64);
        for t in 1..=6 {
            // Gradients of many sizes, and values that get one only now and then.
            let mut gradient = random(count, 50 * seed as u64 + t);
            for (i, g) in gradient.iter_mut().enumerate() {
                *g *= if (i as u64 + t).is_multiple_of(3) { 0.0 } else { 10f32.powi(-(i as i32 % 6)) };
            }
            let (m, v) = decoded(&moments);
            let (mut full, mut expected) = (Moments::Full { m, v }, ours.clone());
            step(&mut expected, &gradient, &mut full, t, 0.8, &HYPER).unwrap();
            step(&mut ours, &gradient, &mut moments, t, 0.8, &HYPER).unwrap();
            assert_eq!(bits(&ours), bits(&expected), "{count} values, step {t}");

            let (Moments::Full { m: m_full, v: v_full }, Moments::Blockwise { m, m_scale, v, v_scale }) =
                (full, &moments)
            else {
                unreachable!()
            };
            for (block, values) in m_full.chunks(MOMENT_BLOCK).enumerate() {
                let (codes, scale) = reference::encode(DynamicMap::signed().codes(), values);
                assert_eq!((&m[block * MOMENT_BLOCK..][..values.len()], m_scale[block]), (&codes[..], scale));
            }
            for (block, values) in v_full.chunks(MOMENT_BLOCK).enumerate() {
                let (mut codes, scale) = reference::encode(DynamicMap::unsigned().codes(), values);
                codes.iter_mut().zip(values).for_each(|(code, value)| *code = (*code).max(u8::from(*value > 0.0)));
                assert_eq!((&v[block * MOMENT_BLOCK..][..values.len()], v_scale[block]), (&codes[..], scale));
            }
        }
    }
}

/// Loss of `Σ curvature · (p - target)² / 2` after a number of steps.
fn descend(moments: &mut Moments, steps: u64) -> f64 {
    let count = moments.len();
    let (target, mut parameters) = (random(count, 7), random(count, 8));
    let curvature = |i: usize| 0.01 * 1.5f32.powi(i as i32 % 12);
    let hyper = Hyper { learning_rate: 1e-2, weight_decay: 0.0, ..HYPER };
    for t in 1..=steps {
        let gradient: Vec<f32> = (0..count).map(|i| curvature(i) * (parameters[i] - target[i])).collect();
        step(&mut parameters, &gradient, moments, t, 1.0, &hyper).unwrap();
    }
    (0..count).map(|i| f64::from(curvature(i) * (parameters[i] - target[i]).powi(2)) / 2.0).sum()
}

#[test]
fn eight_bit_moments_descend_like_full_ones() {
    let start = descend(&mut Moments::full(3000), 0);
    for steps in [20, 60, 400] {
        let (full, small) = (descend(&mut Moments::full(3000), steps), descend(&mut Moments::blockwise(3000), steps));
        assert!((small - full).abs() < 0.01 * start, "{steps} steps: {small} {full} of {start}");
    }
    assert!(descend(&mut Moments::blockwise(3000), 400) < 1e-3 * start);
}

#[test]
fn a_gradient_that_stays_away_does_not_explode() {
    // Tiny beside its block's greatest: rounded to the nearest code its second moment would be 0.
    let mut moments = Moments::blockwise(256);
    let mut parameters = vec![0f32; 256];
    let mut gradient = vec![1f32; 256];
    gradient[5] = 4e-4;
    step(&mut parameters, &gradient, &mut moments, 1, 1.0, &HYPER).unwrap();
    let before = parameters[5];
    gradient[5] = 0.0;
    step(&mut parameters, &gradient, &mut moments, 2, 1.0, &HYPER).unwrap();
    assert!((parameters[5] - before).abs() < 2.0 * HYPER.learning_rate as f32, "{}", parameters[5] - before);
}

#[test]
fn eight_bit_moments_take_a_quarter() {
    let Moments::Blockwise { m, m_scale, v, v_scale } = Moments::blockwise(1000) else { panic!("not in blocks") };
    assert_eq!((m.len(), v.len(), m_scale.len(), v_scale.len()), (1000, 1000, 4, 4));
    assert_eq!(Moments::blockwise(1000).len(), 1000);
}

// === refusals ===

#[test]
fn bad_arguments_change_nothing() {
    let try_step = |moments: &mut Moments, gradient: usize, t, scale, hyper: &Hyper| {
        let mut parameters = vec![1f32; 300];
        let result = step(&mut parameters, &vec![1.0; gradient], moments, t, scale, hyper);
        assert_eq!(result.is_err(), parameters == vec![1f32; 300]);
        result.is_ok()
    };
    for fresh in [Moments::full(300), Moments::blockwise(300)] {
        assert!(try_step(&mut fresh.clone(), 300, 1, 1.0, &HYPER));
        assert!(!try_step(&mut fresh.clone(), 299, 1, 1.0, &HYPER));
        assert!(!try_step(&mut fresh.clone(), 300, 0, 1.0, &HYPER));
        assert!(!try_step(&mut fresh.clone(), 300, 1, f32::NAN, &HYPER));
        for hyper in [
            Hyper { beta1: 1.0, ..HYPER },
            Hyper { beta2: -0.1, ..HYPER },
            Hyper { learning_rate: f64::NAN, ..HYPER },
            Hyper { epsilon: -1.0, ..HYPER },
            Hyper { weight_decay: f64::INFINITY, ..HYPER },
        ] {
            assert!(!try_step(&mut fresh.clone(), 300, 1, 1.0, &hyper));
        }
    }
    assert!(!try_step(&mut Moments::full(299), 300, 1, 1.0, &HYPER));
    let mut short = Moments::blockwise(300);
    if let Moments::Blockwise { v_scale, .. } = &mut short {
        v_scale.pop();
    }
    assert!(!try_step(&mut short, 300, 1, 1.0, &HYPER));
}
