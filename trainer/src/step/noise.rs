//! NEFTune: uniform noise on the embeddings while training.
//!
//! A document of `L` tokens gets `u · alpha / √(L · width)` on every element, `u` uniform in `(-1, 1)`: what the published
//! method adds to a sequence. In a packed row every document has its own `L`; padding gets none. A number follows from the
//! micro-batch's key and the element's place alone, so a recomputed or resumed step sees the same noise.

use brightrun_kernels::Documents;
use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::noise::uniform;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::Result;

/// Keeps the noise apart from the dropout masks of the same micro-batch.
const DOMAIN: u64 = 0x6e65_6674_756e_6500;

/// The key of the noise of a micro-batch with this key.
pub(crate) fn own_key(key: u64) -> u64 {
    splitmix(key ^ DOMAIN)
}

/// What a number in `(-1, 1)` is multiplied with, for every token.
pub(crate) fn magnitudes(documents: &Documents, width: usize, alpha: f32) -> Vec<f32> {
    let mut magnitudes = vec![0.0; documents.tokens()];
    for document in documents.iter() {
        let real = document.start..document.valid_end;
        magnitudes[real.clone()].fill(alpha / (real.len() as f32 * width as f32).sqrt());
    }
    magnitudes
}

/// Adds the noise to embeddings `[N, width]`.
pub(super) fn add(embeddings: &Tensor, documents: &Documents, alpha: f32, key: u64) -> Result<Tensor> {
    let (tokens, width) = embeddings.dims2()?;
    let (key, magnitudes) = (own_key(key), magnitudes(documents, width, alpha));
    let mut noise = vec![0.0f32; tokens * width];
    noise.par_chunks_mut(width).zip(&magnitudes).enumerate().for_each(|(row, (values, magnitude))| {
        for (column, value) in values.iter_mut().enumerate() {
            *value = uniform(key, (row * width + column) as u64) * magnitude;
        }
    });
    Ok((embeddings + Tensor::from_vec(noise, (tokens, width), &Device::Cpu)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn every_document_has_noise_of_its_own_size_and_padding_has_none() {
        let documents = Documents::from_padded_lengths(&[(6, 4), (16, 16)]).unwrap();
        let zeros = Tensor::zeros((22, 8), DType::F32, &Device::Cpu).unwrap();
        let rows = |key| add(&zeros, &documents, 5.0, key).unwrap().to_vec2::<f32>().unwrap();
        let noise = rows(1);
        let largest = |rows: &[Vec<f32>]| rows.iter().flatten().fold(0.0f32, |most, value| most.max(value.abs()));
        let bound = |tokens: f32| 5.0 / (tokens * 8.0).sqrt();
        assert!(largest(&noise[..4]) <= bound(4.0) && largest(&noise[..4]) > 0.8 * bound(4.0));
        assert_eq!(largest(&noise[4..6]), 0.0);
        assert!(largest(&noise[6..]) <= bound(16.0) && largest(&noise[6..]) > 0.9 * bound(16.0));
        let mean: f32 = noise[6..].iter().flatten().sum::<f32>() / 128.0;
        assert!(mean.abs() < 0.2 * bound(16.0), "{mean}");
        assert_eq!(noise, rows(1));
        assert_ne!(noise, rows(2));
    }
}
