//! From the bytes of a tensor to values: every decoder checks what a header cannot tell.

use std::path::Path;

use brightrun_kernels::nf4::{self, Nf4Matrix, Scales};
use brightrun_kernels::{FrozenWeight, fp8};
use half::{bf16, f16};
use safetensors::Dtype;

use super::shards::{SafetensorsFile, Stored};
use super::verify::QUANT_STATE;
use crate::config::fields::Fields;
use crate::config::json::parse_object;
use crate::{Error, Result};

/// Bytes read at once while converting, so that no tensor is in memory twice.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// A tensor in its file.
pub(super) type Found<'a> = (&'a SafetensorsFile, &'a Stored);

/// The values of an f32, bf16 or f16 tensor; refuses NaN and infinity.
pub(crate) fn floats(file: &SafetensorsFile, name: &str, stored: &Stored) -> Result<Vec<f32>> {
    let width = match stored.dtype {
        Dtype::F32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        other => {
            return Err(Error::file(file.path(), format!("{name}: found type {other:?}, expected F32, BF16 or F16")));
        }
    };
    let mut values = Vec::with_capacity(stored.bytes / width);
    each_chunk(file, name, stored, |chunk| match stored.dtype {
        Dtype::F32 => values.extend(chunk.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
        Dtype::BF16 => values.extend(chunk.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
        _ => values.extend(chunk.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())),
    })?;
    all_finite(file.path(), name, &values)?;
    Ok(values)
}

/// The values of a bf16 tensor as they are, whatever they are.
pub(super) fn halves(file: &SafetensorsFile, name: &str, stored: &Stored) -> Result<Vec<bf16>> {
    let mut values = Vec::with_capacity(stored.bytes / 2);
    each_chunk(file, name, stored, |chunk| {
        values.extend(chunk.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes)));
    })?;
    Ok(values)
}

/// Reads a tensor piece by piece.
fn each_chunk(file: &SafetensorsFile, name: &str, stored: &Stored, mut take: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES.min(stored.bytes)];
    for offset in (0..stored.bytes).step_by(CHUNK_BYTES) {
        let chunk = &mut buffer[..CHUNK_BYTES.min(stored.bytes - offset)];
        file.read_at(name, stored, offset, chunk)?;
        take(chunk);
    }
    Ok(())
}

/// An FP8 weight, decoded with its block scales.
pub(super) fn fp8(
    file: &SafetensorsFile,
    name: &str,
    stored: &Stored,
    (scale_file, scale): Found,
    block: [usize; 2],
) -> Result<Vec<f32>> {
    let scale = floats(scale_file, &format!("{name}_scale_inv"), scale)?;
    let bytes = raw(file, name, stored)?;
    let values = fp8::dequantize_blocks(&bytes, stored.shape[0], stored.shape[1], &scale, block)
        .map_err(|error| Error::file(file.path(), format!("{name}: {error}")))?;
    all_finite(file.path(), name, &values)?;
    Ok(values)
}

/// A weight as bitsandbytes serialised it: its bytes are kept, its tables must be the ones we decode with.
pub(super) fn nf4<'a>(
    file: &SafetensorsFile,
    name: &str,
    stored: &Stored,
    shape: &[usize],
    nested: bool,
    side: impl Fn(&str) -> Result<Found<'a>>,
) -> Result<FrozenWeight> {
    let values =
        |suffix: &str| side(suffix).and_then(|(file, stored)| floats(file, &format!("{name}.{suffix}"), stored));
    let bytes = |suffix: &str| side(suffix).and_then(|(file, stored)| raw(file, &format!("{name}.{suffix}"), stored));
    let offset = quant_state(file.path(), name, &bytes(QUANT_STATE)?, shape, nested)?;
    same_table(file.path(), &format!("{name}.quant_map"), &values("quant_map")?, &nf4::CODEBOOK)?;
    let scales = if nested {
        same_table(file.path(), &format!("{name}.nested_quant_map"), &values("nested_quant_map")?, nf4::dynamic_map())?;
        Scales::Double { codes: bytes("absmax")?, nested: values("nested_absmax")?, offset }
    } else {
        Scales::Plain(values("absmax")?)
    };
    let matrix = Nf4Matrix::from_parts(shape[0], shape[1], raw(file, name, stored)?, scales)
        .map_err(|error| Error::file(file.path(), format!("{name}: {error}")))?;
    Ok(FrozenWeight::Nf4(matrix.into()))
}

/// Checks the JSON that describes a quantised weight and returns the offset of its nested scales.
fn quant_state(path: &Path, name: &str, json: &[u8], shape: &[usize], nested: bool) -> Result<f32> {
    let state = format!("{name}.{QUANT_STATE}");
    let in_context = |reason: String| Error::file(path, format!("{state}: {reason}"));
    let text = std::str::from_utf8(json).map_err(|error| in_context(format!("not UTF-8 text: {error}")))?;
    let object = parse_object(text, Path::new(&state)).map_err(|error| Error::file(path, error.to_string()))?;
    let mut fields = Fields::new(&object, "");
    if fields.text("quant_type") != Some("nf4") {
        fields.refuse("quant_type", "\"nf4\"");
    }
    fields.size("blocksize", None, nf4::BLOCK..=nf4::BLOCK);
    let found: Option<Vec<_>> = fields.list("shape").map(|list| list.iter().map(|side| side.as_u64()).collect());
    if !found.is_some_and(|found| found.into_iter().eq(shape.iter().map(|side| Some(*side as u64)))) {
        fields.refuse("shape", format_args!("{shape:?}"));
    }
    let mut offset = 0.0;
    if nested {
        fields.size("nested_blocksize", None, nf4::NESTED_BLOCK..=nf4::NESTED_BLOCK);
        if fields.text("nested_dtype").is_some_and(|dtype| dtype != "float32") {
            fields.refuse("nested_dtype", "\"float32\"");
        }
        let holds = |offset: f64| (offset as f32).is_finite();
        offset = fields.number("nested_offset", f64::NAN, holds, "a finite number");
        if fields.get("nested_offset").is_none() {
            fields.refuse("nested_offset", "a finite number");
        }
    } else if fields.get("nested_blocksize").is_some() {
        fields.refuse("nested_blocksize", "nothing, because absmax is not quantised");
    }
    match fields.into_problems() {
        problems if problems.is_empty() => Ok(offset as f32),
        problems => Err(in_context(crate::error::listed(&problems))),
    }
}

fn same_table(path: &Path, name: &str, found: &[f32], expected: &[f32]) -> Result<()> {
    let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(index) => Err(Error::file(
            path,
            format!(
                "{name}[{index}]: found {:e}, expected {:e}, as bitsandbytes writes it",
                found[index], expected[index]
            ),
        )),
    }
}

fn raw(file: &SafetensorsFile, name: &str, stored: &Stored) -> Result<Vec<u8>> {
    let mut bytes = vec![0; stored.bytes];
    file.read_at(name, stored, 0, &mut bytes)?;
    Ok(bytes)
}

fn all_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            Err(Error::file(path, format!("{name}[{index}]: found {}, expected a finite number", values[index])))
        }
    }
}
