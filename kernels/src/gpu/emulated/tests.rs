//! The emulator finds what is wrong, and nothing in what is right.

use half::bf16;

use crate::gpu::{Buffer, Gpu, Kernel, Shape};

fn shape(blocks: u32, threads: u32) -> Shape {
    Shape::of(blocks, threads).with_shared(4096)
}

/// Runs a kernel of `faults.cu` that takes two addresses.
fn run(kernel: &'static str, blocks: u32, seed: u64) -> crate::Result<Vec<f32>> {
    let gpu = Gpu::emulated(seed);
    let (x, mut y) = (gpu.of(&[1.5f32; 256])?, gpu.empty::<f32>(64)?);
    let kernel = Kernel::new(kernel, "const f32*, f32*");
    gpu.launch(&kernel, shape(blocks, 64), [(&x).into(), (&mut y).into()])?;
    y.download()
}

#[test]
fn every_fault_is_found_and_named() {
    for (kernel, blocks, says) in [
        ("without_barrier", 1, "a read of what nobody has written"),
        ("written_after_read", 1, "another thread has read there"),
        ("across_warps", 1, "memory"),
        ("same_place_from_two_blocks", 2, "another thread has written there"),
        ("never_written", 1, "a read of what nobody has written"),
        ("divergent", 1, "threads wait for each other for ever"),
        ("different_operations", 1, "threads of a warp meet for different things"),
        ("misaligned", 1, "misaligned: 16 bytes at byte 4"),
        ("not_waited_for", 1, "a read of what nobody has written"),
        ("no_such_kernel", 1, "there is no such kernel"),
        ("scale", 1, "it takes (const f32*, f32*, i32, f32), and the host says (const f32*, f32*)"),
    ] {
        // What a thread reads before another one writes it, or after, depends on who comes first; both are found.
        let found: Vec<String> =
            (0..4).filter_map(|seed| run(kernel, blocks, seed).err()).map(|error| error.to_string()).collect();
        assert_eq!(found.len(), 4, "{kernel}: {found:?}");
        assert!(found.iter().any(|error| error.contains(says)), "{kernel}: {found:?}");
    }
}

#[test]
fn what_is_right_runs() {
    for kernel in ["within_warps", "waited_for", "same_place_from_two_blocks"] {
        assert_eq!(run(kernel, 1, 0).unwrap(), [1.5; 64], "{kernel}");
    }
}

const SCALE: Kernel = Kernel::new("scale", "const f32*, f32*, i32, f32");

fn scale(gpu: &Gpu, x: &Buffer<f32>, y: &mut Buffer<f32>, count: i32) -> Result<(), String> {
    let arguments = [x.into(), y.into(), count.into(), 0.25f32.into()];
    gpu.launch(&SCALE, shape(4, 32), arguments).map_err(|error| error.to_string())
}

#[test]
fn bounds_are_those_of_what_a_kernel_was_given() {
    let gpu = Gpu::emulated(0);
    let (x, mut y) = (gpu.of(&[2.0f32; 100]).unwrap(), gpu.empty::<f32>(100).unwrap());
    scale(&gpu, &x, &mut y, 100).unwrap();
    assert_eq!(y.download().unwrap(), [0.5; 100]);
    let error = scale(&gpu, &x, &mut y, 101).unwrap_err();
    assert!(
        error.contains("scale, block (3, 0, 0), thread (4, 0, 0): out of bounds: 4 bytes at byte 400 of 400"),
        "{error}"
    );
    let error = scale(&gpu, &x, &mut y.part(10..60).unwrap(), 51).unwrap_err();
    assert!(error.contains("out of bounds: 4 bytes at byte 200 of 200"), "{error}");
}

#[test]
fn what_nobody_has_written_cannot_be_downloaded() {
    let gpu = Gpu::emulated(0);
    let (x, mut y) = (gpu.of(&[2.0f32; 100]).unwrap(), gpu.empty::<f32>(100).unwrap());
    scale(&gpu, &x, &mut y, 99).unwrap();
    let error = y.download().unwrap_err().to_string();
    assert!(error.contains("4 of 400 bytes were never written"), "{error}");
    assert_eq!(y.part(0..99).unwrap().download().unwrap(), [0.5; 99]);
    assert!(gpu.empty::<f32>(100).unwrap().copy_from(&y).is_err());
}

#[test]
fn arguments_are_those_that_were_declared() {
    let gpu = Gpu::emulated(0);
    let (x, mut y, z) = (gpu.of(&[2.0f32; 8]).unwrap(), gpu.empty::<f32>(8).unwrap(), gpu.of(&[1i32; 8]).unwrap());
    let launch = |arguments| gpu.launch(&SCALE, shape(1, 32), arguments).unwrap_err().to_string();
    let says = launch([(&x).into(), (&mut y).into(), 8i32.into(), 1i32.into()]);
    assert!(says.contains("argument 3 is f32, given a number, i32"), "{says}");
    let says = launch([(&z).into(), (&mut y).into(), 8i32.into(), 1f32.into()]);
    assert!(says.contains("argument 0 is const f32*, given memory of i32"), "{says}");
    let says = launch([(&x).into(), (&y).into(), 8i32.into(), 1f32.into()]);
    assert!(says.contains("argument 1 is f32*, given memory to read"), "{says}");
    let says = gpu.launch(&SCALE, shape(1, 32), [(&x).into()]).unwrap_err().to_string();
    assert!(says.contains("arguments: expected 4, found 1"), "{says}");
}

#[test]
fn a_sum_is_the_same_in_every_order_of_threads() {
    let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
    let sum = |seed| {
        let gpu = Gpu::emulated(seed);
        let (x, mut y) = (gpu.of(&x).unwrap(), gpu.empty::<f32>(1).unwrap());
        let kernel = Kernel::new("sum", "const f32*, f32*, i32");
        gpu.launch(&kernel, shape(1, 256), [(&x).into(), (&mut y).into(), 1000i32.into()]).unwrap();
        y.download().unwrap()[0]
    };
    let first = sum(0);
    assert!((first - x.iter().sum::<f32>()).abs() < 1e-4);
    assert!((1..10).all(|seed| sum(seed).to_bits() == first.to_bits()));
}

#[test]
fn fragments_lie_as_the_hardware_has_them() {
    let value = |i: usize, by: usize| bf16::from_f32(((i * by) % 13) as f32 - 6.0);
    let a: Vec<bf16> = (0..256).map(|i| value(i, 7)).collect();
    let b: Vec<bf16> = (0..128).map(|i| value(i, 5)).collect();
    let gpu = Gpu::emulated(0);
    let of = |row: usize, column: usize| -> f32 {
        (0..16).map(|k| a[row * 16 + k].to_f32() * b[k * 8 + column].to_f32()).sum()
    };
    let expected: Vec<f32> = (0..128).map(|i| of(i / 8, i % 8)).collect();
    for kernel in ["product", "product_tf32"] {
        let kernel = Kernel::new(kernel, "const bf16*, const bf16*, f32*");
        let (a, b, mut d) = (gpu.of(&a).unwrap(), gpu.of(&b).unwrap(), gpu.empty::<f32>(128).unwrap());
        gpu.launch(&kernel, shape(1, 32), [(&a).into(), (&b).into(), (&mut d).into()]).unwrap();
        assert_eq!(d.download().unwrap(), expected);
    }
}

/// `A [64, 64] B [64, 128]` by a kernel of `faults.cu`, beside what it should be.
fn of_warpgroup(kernel: &'static str) -> crate::Result<(Vec<f32>, Vec<f32>)> {
    let value = |i: usize, by: usize| bf16::from_f32(((i * by) % 13) as f32 - 6.0);
    let a: Vec<bf16> = (0..64 * 64).map(|i| value(i, 7)).collect();
    let b: Vec<bf16> = (0..64 * 128).map(|i| value(i, 5)).collect();
    let of = |row: usize, column: usize| -> f32 {
        (0..64).map(|k| a[row * 64 + k].to_f32() * b[k * 128 + column].to_f32()).sum()
    };
    let expected = (0..64 * 128).map(|i| of(i / 128, i % 128)).collect();
    let gpu = Gpu::emulated(3);
    let (a, b, mut d) = (gpu.of(&a)?, gpu.of(&b)?, gpu.empty::<f32>(64 * 128)?);
    let shape = Shape::of(1, 128).with_shared(2 * 64 * (64 + 128));
    let kernel = Kernel::new(kernel, "const bf16*, const bf16*, f32*");
    gpu.launch(&kernel, shape, [(&a).into(), (&b).into(), (&mut d).into()])?;
    Ok((d.download()?, expected))
}

#[test]
fn products_of_warpgroups_find_their_operands_as_the_hardware_does() {
    for kernel in ["warpgroup_along", "warpgroup_across"] {
        let (found, expected) = of_warpgroup(kernel).unwrap();
        assert_eq!(found, expected, "{kernel}");
    }
}

#[test]
fn what_products_of_warpgroups_do_not_wait_for_is_found() {
    for (kernel, says) in [
        ("warpgroup_unfenced_operands", "wgmma does not see what was written, for lack of a fence"),
        ("warpgroup_unfenced_sums", "there was no wgmma_fence before it"),
        ("warpgroup_not_waited_for", "sums were written while wgmma adds to them"),
        ("warpgroup_overwritten", "wgmma is reading there"),
        ("warpgroup_misaligned", "an operand does not begin where its swizzle does"),
    ] {
        let error = of_warpgroup(kernel).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(says)), "{kernel}: {error:?}");
    }
}

#[test]
fn memory_is_counted() {
    let gpu = Gpu::emulated(0);
    let x = gpu.zeros::<f32>(100).unwrap();
    let part = x.part(10..20).unwrap();
    drop(gpu.zeros::<u8>(50).unwrap());
    assert_eq!((gpu.usage().now, gpu.usage().peak), (512, 768));
    drop(x);
    assert_eq!(gpu.usage().now, 512, "a part keeps its memory");
    drop(part);
    gpu.forget_peak();
    assert_eq!((gpu.usage().now, gpu.usage().peak), (0, 0));
}

#[test]
fn kernels_are_counted_while_that_is_asked_for() {
    let gpu = Gpu::emulated(0);
    let (x, mut y) = (gpu.of(&[2.0f32; 100]).unwrap(), gpu.empty::<f32>(100).unwrap());
    let mut once = || scale(&gpu, &x, &mut y, 100).unwrap();
    once();
    let profile = gpu
        .profiled(|| {
            once();
            once();
            Ok(())
        })
        .unwrap();
    assert_eq!(profile.keys().collect::<Vec<_>>(), [&"scale"]);
    assert!(profile["scale"].launches == 2 && profile["scale"].seconds > 0.0);
    assert!(gpu.profiled(|| Ok(())).unwrap().is_empty());
}
