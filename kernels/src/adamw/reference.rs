//! AdamW by its formula in `f64`, and the 8-bit code of a moment by trying every one.

use super::Hyper;

pub(crate) fn step(
    parameters: &mut [f64],
    gradient: &[f32],
    (m, v): (&mut [f64], &mut [f64]),
    step: i32,
    gradient_scale: f64,
    hyper: &Hyper,
) {
    let Hyper { learning_rate, beta1, beta2, epsilon, weight_decay } = *hyper;
    for i in 0..parameters.len() {
        let g = f64::from(gradient[i]) * gradient_scale;
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        let m_hat = m[i] / (1.0 - beta1.powi(step));
        let v_hat = v[i] / (1.0 - beta2.powi(step));
        parameters[i] -= learning_rate * (weight_decay * parameters[i] + m_hat / (v_hat.sqrt() + epsilon));
    }
}

/// Codes and scale of one block.
pub(crate) fn encode(map: &[f32; 256], values: &[f32]) -> (Vec<u8>, f32) {
    let scale = values.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
    let nearest = |value: f32| {
        let scaled = if scale == 0.0 { 0.0 } else { f64::from(value / scale) };
        let distance = |code: usize| (f64::from(map[code]) - scaled).abs();
        (1..256).fold(0, |best, code| if distance(code) < distance(best) { code } else { best }) as u8
    };
    (values.iter().map(|&value| nearest(value)).collect(), scale)
}
