//! The kernels for GPUs, emulated, beside the reference: every value is the reference's, rounded to bf16.

use half::bf16;

use super::*;
use crate::emulator::{Argument, Memory, Shape, launch};

/// Threads that decode, in few blocks, so that each comes round several times.
fn shape(blocks: u32, seed: u64) -> Shape {
    Shape { grid: [blocks, 1, 1], block: [256, 1, 1], shared: 0, seed }
}

fn weights(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i as f32 * 0.731).sin() + (i as f32 * 0.017).cos()) * 0.03 * (1.0 + (i / 64) as f32)).collect()
}

fn decoded(matrix: &Nf4Matrix, blocks: u32, seed: u64) -> std::result::Result<Vec<u16>, String> {
    let count = matrix.rows * matrix.columns;
    let (packed, out) = (Memory::of(&matrix.packed), Memory::empty::<u16>(count));
    let (packed, to, number) = (Argument::Memory(&packed), Argument::Memory(&out), Argument::U64(count as u64));
    let shape = shape(blocks, seed);
    match &matrix.scales {
        Scales::Plain(absmax) => {
            let absmax = Memory::of(absmax);
            // SAFETY: three addresses and a number of 64 bits, as the kernel has them.
            unsafe { launch("nf4_decode", shape, &[packed, Argument::Memory(&absmax), to, number]) }?;
        }
        Scales::Double { codes, nested, offset } => {
            let (codes, nested, map) = (Memory::of(codes), Memory::of(nested), Memory::of(dynamic_map()));
            let scales = [&codes, &nested, &map].map(Argument::Memory);
            let [codes, nested, map] = scales;
            let arguments = [packed, codes, nested, map, Argument::F32(*offset), to, number];
            // SAFETY: four addresses, a number of 32 bits, an address and a number of 64, as the kernel has them.
            unsafe { launch("nf4_decode_double", shape, &arguments) }?;
        }
    }
    assert_eq!(out.unwritten(), 0, "not every value is decoded");
    Ok(out.values())
}

fn expected(matrix: &Nf4Matrix) -> Vec<u16> {
    matrix.dequantize().iter().map(|value| bf16::from_f32(*value).to_bits()).collect()
}

#[test]
fn every_value_is_the_references_rounded() {
    for (rows, columns) in
        [(1, 1), (1, 7), (1, 8), (3, 5), (1, 64), (7, 9), (2, 65), (40, 64), (33, 100), (300, 64), (129, 257)]
    {
        for double_quant in [false, true] {
            let matrix = Nf4Matrix::quantize(&weights(rows * columns), rows, columns, double_quant).unwrap();
            for (blocks, seed) in [(1, 0), (3, 1)] {
                let found = decoded(&matrix, blocks, seed).unwrap();
                assert!(found == expected(&matrix), "{rows} x {columns}, double {double_quant}, {blocks} blocks");
            }
        }
    }
}
