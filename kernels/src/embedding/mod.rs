//! The first step of a model on a GPU: rows of the embedding table by the numbers of the tokens.

use half::bf16;

use crate::gpu::rows::{RowKernels, Rows, address};
use crate::gpu::{Buffer, FrozenPart, Gpu, Kernel};
use crate::{Error, Result};

const OP: &str = "embedding";

const fn gather(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const u32*, bf16*, i32, i32")
}
const GATHER: RowKernels =
    [gather("embedding_gather_short"), gather("embedding_gather_long"), gather("embedding_gather_any")];

/// Numbers of tokens in a GPU's memory, all of them below a limit.
#[derive(Debug)]
pub struct TokenIds {
    ids: Buffer<u32>,
    vocabulary: usize,
}

/// The frozen table of a model, `[vocabulary, width]`.
#[derive(Debug)]
pub struct GpuEmbedding {
    table: Buffer<bf16>,
    vocabulary: usize,
}

// === impl TokenIds ===

impl TokenIds {
    /// Copies the numbers to a GPU; refuses those that no row of a table with `vocabulary` rows has.
    pub fn of(gpu: &Gpu, ids: &[u32], vocabulary: usize) -> Result<Self> {
        if let Some(place) = ids.iter().position(|id| *id as usize >= vocabulary) {
            let reason = format!("token {place} has the number {}, and the table {vocabulary} rows", ids[place]);
            return Err(Error::invalid(OP, reason));
        }
        Ok(Self { ids: gpu.of(ids)?, vocabulary })
    }

    /// The numbers.
    pub fn ids(&self) -> &Buffer<u32> {
        &self.ids
    }
}

// === impl GpuEmbedding ===

impl GpuEmbedding {
    /// A table that lies in a GPU's memory already.
    pub fn new(table: Buffer<bf16>, vocabulary: usize) -> Result<Self> {
        if vocabulary == 0 || table.is_empty() || !table.len().is_multiple_of(vocabulary) {
            return Err(Error::shape(OP, "table", format!("{vocabulary} rows"), table.len()));
        }
        Ok(Self { table, vocabulary })
    }

    /// Everything that it knows.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        vec![FrozenPart::of("table", &self.table)]
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.table.len() / self.vocabulary
    }

    /// The rows of these tokens.
    pub fn forward(&self, tokens: &TokenIds, out: &mut Buffer<bf16>) -> Result<()> {
        if tokens.vocabulary > self.vocabulary {
            return Err(Error::shape(OP, "rows of the table", tokens.vocabulary, self.vocabulary));
        }
        out.expect(OP, "rows", tokens.ids.len() * self.width())?;
        let rows = Rows::of(OP, out.len(), self.width(), &[address(&self.table), address(&*out)])?;
        let (table, ids) = ((&self.table).into(), (&tokens.ids).into());
        let arguments = [table, ids, out.into(), rows.rows.into(), rows.width.into()];
        self.table.gpu().launch(rows.kernel(&GATHER), rows.shape(), arguments)
    }
}

#[cfg(all(test, feature = "emulation"))]
mod tests {
    use super::*;

    #[test]
    fn a_number_beyond_the_table_is_refused() {
        let gpu = Gpu::emulated(0);
        let error = TokenIds::of(&gpu, &[1, 0, 7], 7).unwrap_err().to_string();
        assert!(error.contains("token 2 has the number 7, and the table 7 rows"), "{error}");
        let tokens = TokenIds::of(&gpu, &[1, 0, 6], 7).unwrap();
        let small = GpuEmbedding::new(gpu.zeros(6 * 8).unwrap(), 6).unwrap();
        assert!(small.forward(&tokens, &mut gpu.empty(3 * 8).unwrap()).is_err());
    }
}
