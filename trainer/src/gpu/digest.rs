//! A digest of the frozen base as it lies in a GPU's memory: [`Model::digest`](crate::model::Model::digest) for what is held
//! otherwise there, and so with other digests.

use brightrun_kernels::gpu::{Buffer, FrozenPart};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::model::GpuModel;
use crate::proof::{Digest, update_text};
use crate::stop::Stop;
use crate::{Error, Result};

/// Names the way the digest is made.
const FORMAT: &str = "brightrun frozen base 1, on a GPU";
/// Bytes that are copied to the host at a time, and bytes of a piece of them, each of which is hashed by itself.
const COPIED: usize = 64 << 20;
const PIECE: usize = 4 << 20;

/// The frozen parts of a layer, or of what stands before or after the layers, with the modules they belong to.
#[derive(Default)]
pub(super) struct Parts(Vec<(String, FrozenPart)>);

// === impl Parts ===

impl Parts {
    /// All of a module.
    pub(super) fn add(&mut self, path: &str, parts: impl IntoIterator<Item = FrozenPart>) {
        self.0.extend(parts.into_iter().map(|part| (path.to_owned(), part)));
    }

    fn update(&self, hash: &mut Sha256, stop: &Stop) -> Result<()> {
        for (path, part) in &self.0 {
            update_text(hash, path);
            match part {
                FrozenPart::Number(name, number) => {
                    update_text(hash, name);
                    hash.update(number.to_le_bytes());
                }
                FrozenPart::Memory(name, bytes) => {
                    update_text(hash, name);
                    hash.update((bytes.len() as u64).to_le_bytes());
                    pieces(bytes, stop)?.iter().for_each(|piece| hash.update(piece.bytes()));
                }
            }
        }
        Ok(())
    }
}

fn pieces(bytes: &Buffer<u8>, stop: &Stop) -> Result<Vec<Digest>> {
    let mut all = Vec::with_capacity(bytes.len().div_ceil(PIECE));
    for begin in (0..bytes.len()).step_by(COPIED) {
        if stop.asked().is_some() {
            return Err(Error::Cancelled);
        }
        let copied = bytes.part(begin..bytes.len().min(begin + COPIED))?.download()?;
        all.par_extend(copied.par_chunks(PIECE).map(|piece| {
            let mut hash = Sha256::new();
            hash.update(piece);
            Digest::finish(hash)
        }));
    }
    Ok(all)
}

// === impl GpuModel ===

impl GpuModel {
    /// SHA-256 of every frozen byte, as it lies in the GPU's memory. The adapters are no part of it, nor the table of rotations.
    pub fn digest(&self, stop: &Stop) -> Result<Digest> {
        let mut hash = Sha256::new();
        update_text(&mut hash, FORMAT);
        let mut parts = Parts::default();
        parts.add("model.embed_tokens", self.embedding.frozen());
        parts.update(&mut hash, stop)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let mut parts = Parts::default();
            layer.frozen(&format!("model.layers.{index}"), &mut parts);
            parts.update(&mut hash, stop)?;
        }
        let mut parts = Parts::default();
        parts.add("model.norm", self.head.norm.frozen());
        self.head.linear.frozen("lm_head", &mut parts);
        parts.update(&mut hash, stop)?;
        Ok(Digest::finish(hash))
    }
}
