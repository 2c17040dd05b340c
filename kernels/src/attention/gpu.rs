//! Attention on a GPU.

use half::bf16;

use super::{Heads, NAME};
use crate::documents::GpuDocuments;
use crate::gpu::{Argument, Buffer, Facts, Gpu, Kernel, Shape};
use crate::{Error, Result};

const FORWARD: &str = "const bf16*, const bf16*, const bf16*, bf16*, f32*, const u32*, i32, i32, i32, i32, f32";
const QUERIES: &str = "const bf16*, const bf16*, const bf16*, const bf16*, const bf16*, const f32*, const u32*, f32*, bf16*, i32, i32, i32, i32, f32";
const KEYS: &str = "const bf16*, const bf16*, const bf16*, const bf16*, const f32*, const f32*, const u32*, bf16*, bf16*, f32*, i32, i32, i32, i32, i32, f32";
const ADD_PARTS: Kernel = Kernel::new("attention_add_parts", "const f32*, i32, bf16*, bf16*, u64");

/// Widths of heads that there are kernels for; others are filled up with zeros in shared memory.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];
/// Rows of heads begin at multiples of 16 bytes.
const GRAIN: usize = 8;
/// Deltas of a head are kept for whole blocks of rows (`delta_rows`).
const DELTA_ROWS: usize = 128;
/// What a block takes of a multiprocessor's shared memory beside its tiles: its fixed part, and 1 KiB of the system's.
const BESIDE: usize = 2048;
/// Blocks of keys for each multiprocessor, so that long and short ones even out: what a causal mask leaves of them varies.
const BLOCKS: usize = 4;

/// A kernel, and how much of the work a block of it takes.
struct Tile {
    kernel: Kernel,
    /// Tokens that a block is for.
    rows: usize,
    threads: u32,
    shared: usize,
}

/// Attention over one packed row of one layer, on a GPU.
///
/// All matrices are `[tokens, heads · width]`, and the logarithms of the softmax's sums `[query heads, tokens]`. A width is a
/// multiple of 8 up to 256; 64, 128 and 256 waste nothing. Padding belongs to the document that it follows: no real token
/// sees any of it, and what stands in its rows means nothing.
#[derive(Debug, Clone, Copy)]
pub struct GpuAttention<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// The documents of the row.
    pub documents: &'a GpuDocuments,
}

/// What a forward pass took and left.
#[derive(Debug, Clone, Copy)]
pub struct GpuAttended<'a> {
    /// Queries.
    pub q: &'a Buffer<bf16>,
    /// Keys.
    pub k: &'a Buffer<bf16>,
    /// Values.
    pub v: &'a Buffer<bf16>,
    /// The output.
    pub out: &'a Buffer<bf16>,
    /// Logarithms of the softmax's sums.
    pub log_sums: &'a Buffer<f32>,
}

// === impl Tile ===

impl Tile {
    /// `shared` counts rows of the width; `pieces` are values of other tiles.
    const fn new(kernel: Kernel, width: usize, rows: usize, warps: u32, shared: usize, pieces: usize) -> Self {
        Self { kernel, rows, threads: 32 * warps, shared: size_of::<bf16>() * (shared * width + pieces) }
    }

    fn forward(width: usize, facts: &Facts) -> Self {
        let tile = |name, rows, keys: usize, warps| {
            Self::new(Kernel::new(name, FORWARD), width, rows, warps, rows + 2 * keys, 0)
        };
        match width {
            32 => tile("attention_forward_32", 64, 64, 4),
            64 => tile("attention_forward_64", 128, 64, 4),
            128 => tile("attention_forward_128", 128, 64, 4),
            _ => {
                tile("attention_forward_256", 64, 64, 4).or_tall(tile("attention_forward_256_tall", 128, 64, 8), facts)
            }
        }
    }

    fn queries(width: usize, facts: &Facts) -> Self {
        let tile = |name, rows, keys: usize, warps| {
            Self::new(Kernel::new(name, QUERIES), width, rows, warps, 2 * rows + 2 * keys, 0)
        };
        match width {
            32 => tile("attention_queries_32", 64, 64, 4),
            64 => tile("attention_queries_64", 128, 32, 4),
            128 => tile("attention_queries_128", 128, 32, 4),
            _ => {
                tile("attention_queries_256", 64, 32, 4).or_tall(tile("attention_queries_256_tall", 128, 32, 8), facts)
            }
        }
    }

    fn keys(width: usize, facts: &Facts) -> Self {
        let tile =
            |name, side, warps| Self::new(Kernel::new(name, KEYS), width, side, warps, 4 * side, 2 * side * side);
        let tall = tile("attention_keys_256_tall", 64, 8);
        match width {
            32 => tile("attention_keys_32", 64, 4),
            64 => tile("attention_keys_64", 64, 4),
            128 => tile("attention_keys_128", 64, 4),
            // Larger tiles read more out of each fragment: always, where there is room.
            _ if tall.fits(facts) => tall,
            _ => tile("attention_keys_256", 32, 4),
        }
    }

    fn fits(&self, facts: &Facts) -> bool {
        self.shared + BESIDE <= facts.shared_per_block
    }

    /// One block of twice the warps, where a multiprocessor has room for that but not for two of these.
    fn or_tall(self, tall: Self, facts: &Facts) -> Self {
        let two = 2 * (self.shared + BESIDE) <= facts.shared_per_multiprocessor;
        if !two && tall.fits(facts) { tall } else { self }
    }

    fn blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.rows)
    }

    fn launch<const N: usize>(&self, gpu: &Gpu, heads: usize, tokens: usize, arguments: [Argument; N]) -> Result<()> {
        let shape = Shape::grid([heads as u32, self.blocks(tokens) as u32, 1], self.threads);
        gpu.launch(&self.kernel, shape.with_shared(self.shared), arguments)
    }
}

// === impl GpuAttention ===

impl GpuAttention<'_> {
    /// `out = softmax(q kᵗ / √width) v`, and the logarithms of the sums, which the backward pass takes.
    pub fn forward(
        &self,
        [q, k, v]: [&Buffer<bf16>; 3],
        out: &mut Buffer<bf16>,
        log_sums: &mut Buffer<f32>,
    ) -> Result<()> {
        let width = self.padded_width()?;
        self.expect([("q", q), ("out", out)], [("k", k), ("v", v)], log_sums)?;
        let tile = Tile::forward(width, q.gpu().facts());
        let (starts, [tokens, query, key, width]) = (self.documents.starts(), self.sizes());
        // Of powers of 2.
        let scale = self.scale() * std::f32::consts::LOG2_E;
        let arguments = [
            q.into(),
            k.into(),
            v.into(),
            out.into(),
            log_sums.into(),
            starts.into(),
            tokens.into(),
            query.into(),
            key.into(),
            width.into(),
            scale.into(),
        ];
        tile.launch(q.gpu(), self.heads.query, self.documents.tokens(), arguments)
    }

    /// Gradients of queries, keys and values for the output's `gradient`.
    pub fn backward(
        &self,
        pass: &GpuAttended<'_>,
        gradient: &Buffer<bf16>,
        [dq, dk, dv]: [&mut Buffer<bf16>; 3],
    ) -> Result<()> {
        self.padded_width()?;
        self.expect([("q", pass.q), ("out", pass.out)], [("k", pass.k), ("v", pass.v)], pass.log_sums)?;
        self.expect([("gradient", gradient), ("dq", dq)], [("dk", dk), ("dv", dv)], pass.log_sums)?;
        let rows = self.documents.tokens().next_multiple_of(DELTA_ROWS);
        let mut deltas = gradient.gpu().empty::<f32>(self.heads.query * rows)?;
        self.change_queries(pass, gradient, &mut deltas, dq)?;
        self.change_keys(pass, gradient, &deltas, dk, dv)
    }

    /// The gradient of queries, and `Σ gradient · out` of every row on the way.
    fn change_queries(
        &self,
        pass: &GpuAttended<'_>,
        gradient: &Buffer<bf16>,
        deltas: &mut Buffer<f32>,
        dq: &mut Buffer<bf16>,
    ) -> Result<()> {
        let (gpu, [tokens, query, key, width]) = (gradient.gpu(), self.sizes());
        let arguments = [
            pass.q.into(),
            pass.k.into(),
            pass.v.into(),
            pass.out.into(),
            gradient.into(),
            pass.log_sums.into(),
            self.documents.starts().into(),
            deltas.into(),
            dq.into(),
            tokens.into(),
            query.into(),
            key.into(),
            width.into(),
            self.scale().into(),
        ];
        let tile = Tile::queries(self.padded_width()?, gpu.facts());
        tile.launch(gpu, self.heads.query, self.documents.tokens(), arguments)
    }

    fn change_keys(
        &self,
        pass: &GpuAttended<'_>,
        gradient: &Buffer<bf16>,
        deltas: &Buffer<f32>,
        dk: &mut Buffer<bf16>,
        dv: &mut Buffer<bf16>,
    ) -> Result<()> {
        let (gpu, [tokens, query, key, width]) = (gradient.gpu(), self.sizes());
        let tile = Tile::keys(self.padded_width()?, gpu.facts());
        let (count, number) = (dk.len(), self.parts(tile.blocks(self.documents.tokens()), gpu.facts()));
        let mut parts = if number > 1 { Some(gpu.empty::<f32>(2 * number * count)?) } else { None };
        let arguments = [
            pass.q.into(),
            pass.k.into(),
            pass.v.into(),
            gradient.into(),
            pass.log_sums.into(),
            deltas.into(),
            self.documents.ends().into(),
            (&mut *dk).into(),
            (&mut *dv).into(),
            parts.as_mut().into(),
            tokens.into(),
            query.into(),
            key.into(),
            width.into(),
            ((self.heads.query / self.heads.key_value / number) as i32).into(),
            self.scale().into(),
        ];
        tile.launch(gpu, self.heads.key_value * number, self.documents.tokens(), arguments)?;
        let Some(parts) = parts else { return Ok(()) };
        let shape = Shape::grid([gpu.blocks(count.div_ceil(4 * 256), 8), 2, 1], 256);
        let number = (number as i32).into();
        gpu.launch(&ADD_PARTS, shape, [(&parts).into(), number, dk.into(), dv.into(), (count as u64).into()])
    }

    /// How many blocks share the query heads of a key head: as few as keep the GPU busy, since each writes sums of its own.
    fn parts(&self, blocks: usize, facts: &Facts) -> usize {
        let each = self.heads.query / self.heads.key_value;
        let wanted = BLOCKS * facts.multiprocessors as usize;
        let enough = |parts: &usize| blocks * self.heads.key_value * parts >= wanted;
        (1..each).filter(|parts| each.is_multiple_of(*parts)).find(enough).unwrap_or(each)
    }

    /// What of the widths that there are kernels for.
    fn padded_width(&self) -> Result<usize> {
        let Heads { query, key_value, width } = self.heads;
        if key_value == 0 || query == 0 || !query.is_multiple_of(key_value) {
            return Err(Error::shape(NAME, "query heads", "a multiple of the key heads", self.heads));
        }
        match WIDTHS.into_iter().find(|padded| width <= *padded) {
            Some(padded) if width > 0 && width.is_multiple_of(GRAIN) => Ok(padded),
            _ => Err(Error::shape(NAME, "width of heads on a GPU", "a multiple of 8 up to 256", width)),
        }
    }

    fn expect(
        &self,
        of_queries: [(&'static str, &Buffer<bf16>); 2],
        of_keys: [(&'static str, &Buffer<bf16>); 2],
        log_sums: &Buffer<f32>,
    ) -> Result<()> {
        let (Heads { query, key_value, width }, tokens) = (self.heads, self.documents.tokens());
        // Kernels count in 31 bits.
        if i32::try_from(tokens.next_multiple_of(DELTA_ROWS) * query * width).is_err() {
            return Err(Error::shape(NAME, "values of q", format!("at most {}", i32::MAX), tokens * query * width));
        }
        of_queries.into_iter().try_for_each(|(what, buffer)| buffer.expect(NAME, what, tokens * query * width))?;
        of_keys.into_iter().try_for_each(|(what, buffer)| buffer.expect(NAME, what, tokens * key_value * width))?;
        log_sums.expect(NAME, "log-sums", tokens * query)
    }

    /// Tokens, query heads, key heads and width.
    fn sizes(&self) -> [i32; 4] {
        let Heads { query, key_value, width } = self.heads;
        [self.documents.tokens(), query, key_value, width].map(|size| size as i32)
    }

    fn scale(&self) -> f32 {
        (self.heads.width as f32).powf(-0.5)
    }
}

#[cfg(all(test, feature = "emulation"))]
mod tests {
    use super::*;
    use crate::Documents;
    use crate::gpu_check::{FAMILIES, Sizes};

    fn as_a100(facts: &mut Facts) {
        (facts.shared_per_block, facts.shared_per_multiprocessor) = (163 << 10, 164 << 10);
    }

    #[test]
    fn the_kernels_of_larger_cards_hold_as_well() {
        let family = FAMILIES.iter().find(|family| family.name == "attention").unwrap();
        let wrong: Vec<_> = (family.run(&Gpu::emulated_as(3, as_a100), Sizes::Small, 5).unwrap().into_iter())
            .filter(|check| !check.holds())
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn cards_get_the_kernels_that_fill_them() {
        let facts = |block: usize, multiprocessor: usize| {
            let mut facts = Gpu::emulated(0).facts().clone();
            (facts.shared_per_block, facts.shared_per_multiprocessor) = (block << 10, multiprocessor << 10);
            facts
        };
        let tiles = |width, facts: &Facts| [Tile::forward, Tile::queries, Tile::keys].map(|tile| tile(width, facts));
        let rows = |facts: &Facts| tiles(256, facts).map(|tile| tile.rows);
        assert_eq!(rows(&facts(99, 100)), [64, 64, 32], "RTX");
        assert_eq!(rows(&facts(163, 164)), [128, 128, 64], "A100");
        assert_eq!(rows(&facts(227, 228)), [64, 64, 64], "H100");
        for facts in [facts(99, 100), facts(163, 164), facts(227, 228)] {
            let all = WIDTHS.map(|width| tiles(width, &facts));
            assert!(all.as_flattened().iter().all(|tile| tile.fits(&facts)), "{facts:?}");
        }
    }

    #[test]
    fn what_no_kernel_computes_is_refused() {
        let gpu = Gpu::emulated(0);
        let documents = GpuDocuments::of(&gpu, &Documents::from_lengths(&[3]).unwrap()).unwrap();
        let run = |query, key_value, width, values: usize| {
            let heads = Heads { query, key_value, width };
            let (x, mut out, mut sums) = (gpu.zeros(values)?, gpu.empty(values)?, gpu.empty(3 * query)?);
            let attention = GpuAttention { heads, documents: &documents };
            attention.forward([&x, &x, &x], &mut out, &mut sums)
        };
        run(1, 1, 8, 24).unwrap();
        for ((query, key_value, width, values), says) in [
            ((1, 1, 264, 792), "width of heads on a GPU: expected \"a multiple of 8 up to 256\", found 264"),
            ((1, 1, 12, 36), "width of heads on a GPU"),
            ((1, 1, 0, 0), "width of heads on a GPU"),
            ((3, 2, 8, 72), "query heads"),
            ((1, 1, 8, 25), "q: expected 24, found 25"),
            ((2, 1, 8, 48), "k: expected 24, found 48"),
        ] {
            let error = run(query, key_value, width, values).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
