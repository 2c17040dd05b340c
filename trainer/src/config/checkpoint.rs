//! `quantization_config`: how the weights of a checkpoint lie on disk.

use serde_json::Value;

use super::fields::Fields;

/// The largest side of an FP8 scale block.
const MAX_BLOCK: u64 = 1 << 16;

/// How a checkpoint stores its linears. Which of them are quantised is decided tensor by tensor, by what lies beside
/// them, because published files disagree with their own lists of exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// Values in f32, bf16 or f16.
    Plain,
    /// `float8_e4m3fn` with one scale per block (`weight_scale_inv`).
    Fp8 {
        /// Rows and columns of a block.
        block: [usize; 2],
    },
    /// bitsandbytes' NF4.
    Bnb4bit,
}

/// Reads `quantization_config`; an absent one means plain values.
pub(super) fn format(fields: &mut Fields) -> CheckpointFormat {
    let Some(object) = fields.object("quantization_config") else {
        return CheckpointFormat::Plain;
    };
    let mut inner = Fields::new(object, "quantization_config.");
    let four_bit = inner.flag("load_in_4bit", false) || inner.flag("_load_in_4bit", false);
    // Files of old transformers versions have no `quant_method`.
    let method = match inner.text("quant_method") {
        None if four_bit => Some("bitsandbytes"),
        found => found,
    };
    let format = match method {
        Some("fp8") => fp8(&mut inner),
        Some("bitsandbytes") => {
            check_bitsandbytes(&mut inner, four_bit);
            CheckpointFormat::Bnb4bit
        }
        _ => {
            inner.refuse(
                "quant_method",
                "\"fp8\" or \"bitsandbytes\" (4-bit NF4), or a checkpoint that is not quantised",
            );
            CheckpointFormat::Plain
        }
    };
    inner.into_problems().into_iter().for_each(|problem| fields.note(problem));
    format
}

fn fp8(fields: &mut Fields) -> CheckpointFormat {
    if fields.text("fmt").is_some_and(|name| name != "e4m3") {
        fields.refuse("fmt", "\"e4m3\"");
    }
    // A static scheme stores activation scales too, which only an FP8 forward pass has a use for.
    if fields.text("activation_scheme").is_some_and(|name| name != "dynamic") {
        fields.refuse("activation_scheme", "\"dynamic\"");
    }
    let side = |value: &Value| value.as_u64().filter(|side| (1..=MAX_BLOCK).contains(side)).map(|side| side as usize);
    let sides: Option<Vec<usize>> =
        fields.get("weight_block_size").and_then(Value::as_array).and_then(|sides| sides.iter().map(side).collect());
    match sides.as_deref() {
        Some(&[rows, columns]) => CheckpointFormat::Fp8 { block: [rows, columns] },
        _ => {
            fields.refuse("weight_block_size", "two block sides such as [128, 128]");
            CheckpointFormat::Fp8 { block: [128, 128] }
        }
    }
}

fn check_bitsandbytes(fields: &mut Fields, four_bit: bool) {
    if fields.flag("load_in_8bit", false) || fields.flag("_load_in_8bit", false) {
        fields.refuse("load_in_8bit", "false: of bitsandbytes' formats only 4-bit NF4 is supported");
    } else if !four_bit {
        fields.refuse("load_in_4bit", "true: of bitsandbytes' formats only 4-bit NF4 is supported");
    }
    // bitsandbytes' own default is FP4, which an absent field therefore means.
    if four_bit && fields.text("bnb_4bit_quant_type") != Some("nf4") {
        fields.refuse("bnb_4bit_quant_type", "\"nf4\"");
    }
    if fields.text("bnb_4bit_quant_storage").is_some_and(|name| name != "uint8") {
        fields.refuse("bnb_4bit_quant_storage", "\"uint8\"");
    }
}
