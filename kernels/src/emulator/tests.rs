//! The emulator finds what is wrong, and nothing in what is right.

use half::bf16;

use super::*;

fn shape(blocks: u32, threads: u32) -> Shape {
    Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 4096, seed: 0 }
}

/// Runs a kernel of `faults.cu` that takes two addresses.
fn run(kernel: &str, blocks: u32) -> Result<Vec<f32>, String> {
    let (x, y) = (Memory::of(&[1.5f32; 256]), Memory::empty::<f32>(64));
    let shape = shape(blocks, 64);
    // SAFETY: all of them take two addresses.
    unsafe { launch(kernel, shape, &[Argument::Memory(&x), Argument::Memory(&y)]) }.map(|()| y.values())
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
    ] {
        // What a thread reads before another one writes it, or after, depends on who comes first; both are found.
        let found: Vec<String> = (0..4)
            .filter_map(|seed| {
                let (x, y) = (Memory::of(&[1.5f32; 256]), Memory::empty::<f32>(64));
                let shape = Shape { seed, ..shape(blocks, 64) };
                // SAFETY: all of them take two addresses.
                unsafe { launch(kernel, shape, &[Argument::Memory(&x), Argument::Memory(&y)]) }.err()
            })
            .collect();
        assert_eq!(found.len(), 4, "{kernel}: {found:?}");
        assert!(found.iter().any(|error| error.contains(says)), "{kernel}: {found:?}");
    }
}

#[test]
fn what_is_right_runs() {
    for kernel in ["within_warps", "waited_for", "same_place_from_two_blocks"] {
        assert_eq!(run(kernel, 1).unwrap(), [1.5; 64], "{kernel}");
    }
}

#[test]
fn bounds_are_those_of_the_allocation() {
    let (x, y) = (Memory::of(&[2.0f32; 100]), Memory::empty::<f32>(100));
    let run = |count| {
        let arguments = [Argument::Memory(&x), Argument::Memory(&y), Argument::I32(count), Argument::F32(0.25)];
        // SAFETY: two addresses and two numbers, as the kernel has them.
        unsafe { launch("scale", shape(4, 32), &arguments) }
    };
    run(100).unwrap();
    assert_eq!((y.values::<f32>(), y.unwritten()), (vec![0.5; 100], 0));
    let error = run(101).unwrap_err();
    assert!(
        error.contains("scale, block (3, 0, 0), thread (4, 0, 0): out of bounds: 4 bytes at byte 400 of 400"),
        "{error}"
    );
}

#[test]
fn a_sum_is_the_same_in_every_order_of_threads() {
    let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
    let sum = |seed| {
        let (x, y) = (Memory::of(&x), Memory::empty::<f32>(1));
        let arguments = [Argument::Memory(&x), Argument::Memory(&y), Argument::I32(1000)];
        // SAFETY: two addresses and a number, as the kernel has them.
        unsafe { launch("sum", Shape { seed, ..shape(1, 256) }, &arguments) }.unwrap();
        y.values::<f32>()[0]
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
    let bits = |values: &[bf16]| Memory::of(&values.iter().map(|value| value.to_bits()).collect::<Vec<u16>>());
    let (a_memory, b_memory, d) = (bits(&a), bits(&b), Memory::empty::<f32>(128));
    let arguments = [Argument::Memory(&a_memory), Argument::Memory(&b_memory), Argument::Memory(&d)];
    // SAFETY: three addresses, as the kernel has them.
    unsafe { launch("product", shape(1, 32), &arguments) }.unwrap();
    let of = |row: usize, column: usize| -> f32 {
        (0..16).map(|k| a[row * 16 + k].to_f32() * b[k * 8 + column].to_f32()).sum()
    };
    let expected: Vec<f32> = (0..128).map(|i| of(i / 8, i % 8)).collect();
    assert_eq!(d.values::<f32>(), expected);
}
