//! What does not show in numbers beside a reference.

use half::bf16;

use super::{ExpertsCall, GpuExpertLora, GpuExperts, GpuRouting};
use crate::dropout::Dropout;
use crate::gpu::{Buffer, Element, Gpu};
use crate::moe::ExpertLoraLayout;
use crate::noise::{uniform, uniform_bf16};

fn bits<T: Element + Into<f64>>(buffer: &Buffer<T>) -> Vec<u64> {
    buffer.download().unwrap().into_iter().map(|value| value.into().to_bits()).collect()
}

#[test]
fn a_repeated_pass_keeps_the_same_and_leaves_the_sums_out() {
    let gpu = Gpu::emulated(1);
    let (experts, hidden, width, per_token, tokens) = (3, 64, 64, 2, 21);
    let frozen = GpuExperts::random(&gpu, [experts, hidden, width], Some(true), 0.1, 5).unwrap();
    let layout = ExpertLoraLayout::new(hidden, width, &vec![[Some((4, 2.0)); 3]; experts]);
    let parameter: Vec<f32> = (0..layout.len() as u64).map(|place| 0.1 * uniform(6, place)).collect();
    let mut lora = GpuExpertLora::new(&gpu, &layout, hidden, width).unwrap();
    lora.refresh(&gpu.of(&parameter).unwrap()).unwrap();
    let logits: Vec<f32> = (0..(tokens * experts) as u64).map(|place| uniform(7, place)).collect();
    let routing = GpuRouting::from_logits(&gpu.of(&logits).unwrap(), experts, per_token, true).unwrap();
    let dropout = Some([1, 2, 3].map(|which| Dropout::keyed(0.2, &[which])));
    let call = ExpertsCall { experts: &frozen, routing: &routing, lora: Some(&lora), dropout };
    let x: Buffer<bf16> = uniform_bf16(&gpu, tokens * hidden, 1.0, 8).unwrap();

    let mut out = gpu.empty(tokens * hidden).unwrap();
    let kept = call.forward(&x, &mut out, false).unwrap();
    let mut again = None;
    let profile = gpu.profiled(|| {
        again = Some(call.forward_again(&x)?);
        Ok(())
    });
    let again = again.unwrap();
    let names: Vec<_> = profile.unwrap().into_keys().filter(|name| name.starts_with("moe_")).collect();
    assert!(names.iter().any(|name| name.contains("gate_up")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("down") || name.contains("combine")), "{names:?}");
    for (one, other) in [
        (&kept.gate_up, &again.gate_up),
        (&kept.inner, &again.inner),
        (&kept.low_gate_up, &again.low_gate_up),
        (&kept.low_down, &again.low_down),
    ] {
        assert!(!one.is_empty());
        assert_eq!(bits(one), bits(other));
    }
}
