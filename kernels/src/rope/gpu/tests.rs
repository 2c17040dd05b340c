//! What cannot be is refused before anything runs.

use super::*;
use crate::Documents;

#[test]
fn documents_longer_than_the_table_are_refused() {
    let gpu = Gpu::emulated(0);
    let shape = HeadShape { heads: 1, head_dim: 8, source_stride: 8 };
    let rope = GpuHeadNormRope::of(&gpu, shape, None).unwrap();
    let table = GpuRopeTable::of(&gpu, &RopeTable::new(4, 1e4, 3).unwrap()).unwrap();
    let x = gpu.zeros(4 * 8).unwrap();
    let run = |lengths: &[usize]| {
        let documents = GpuDocuments::of(&gpu, &Documents::from_lengths(lengths).unwrap()).unwrap();
        rope.forward(&x, &table, &documents, &mut gpu.empty(4 * 8).unwrap())
    };
    run(&[3, 1]).unwrap();
    let error = run(&[4]).unwrap_err().to_string();
    assert!(error.contains("a document of 4 tokens and a table of 3 positions"), "{error}");
    assert!(run(&[3]).is_err(), "other documents than rows");
}

#[test]
fn heads_that_do_not_fit_into_registers_are_refused() {
    let gpu = Gpu::emulated(0);
    let documents = GpuDocuments::of(&gpu, &Documents::from_lengths(&[1]).unwrap()).unwrap();
    let table = GpuRopeTable::of(&gpu, &RopeTable::new(16, 1e4, 3).unwrap()).unwrap();
    for (head_dim, fits) in [(256, true), (264, false), (128, true), (129, false)] {
        let shape = HeadShape { heads: 1, head_dim, source_stride: head_dim };
        let rope = GpuHeadNormRope::of(&gpu, shape, None).unwrap();
        let (x, mut y) = (gpu.zeros(head_dim).unwrap(), gpu.empty(head_dim).unwrap());
        assert_eq!(rope.forward(&x, &table, &documents, &mut y).is_ok(), fits, "{head_dim}");
    }
}
