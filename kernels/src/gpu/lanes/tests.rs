//! What is beside the main queue is waited for, or it is an error; on an emulated GPU, which does it at once or late.

use crate::gpu::arena::rounded;
use crate::gpu::{Buffer, Gpu, HostBuffer, Kernel, Lane, Shape, Task};

const SCALE: Kernel = Kernel::new("scale", "const f32*, f32*, i32, f32");
const COUNT: usize = 100;
/// What so many `f32` take of memory.
const TAKEN: u64 = rounded(4 * COUNT as u64);

fn scale(gpu: &Gpu, x: &Buffer<f32>, y: &mut Buffer<f32>, by: f32) -> crate::Result<()> {
    let arguments = [x.into(), y.into(), (COUNT as i32).into(), by.into()];
    gpu.launch(&SCALE, Shape::of(4, 32), arguments)
}

fn beside(gpu: &Gpu, x: &Buffer<f32>, y: &mut Buffer<f32>, by: f32) -> crate::Result<Task> {
    gpu.beside(Lane::Kernels, || scale(gpu, x, y, by))
}

/// In both orders.
fn each(check: impl Fn(&Gpu)) {
    (0..2).for_each(|seed| check(&Gpu::emulated(seed)));
}

fn says<T: std::fmt::Debug>(result: crate::Result<T>, text: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[test]
fn what_was_waited_for_is_there() {
    each(|gpu| {
        let (x, mut y, mut z) = (gpu.of(&[2.0; COUNT]).unwrap(), gpu.empty(COUNT).unwrap(), gpu.empty(COUNT).unwrap());
        let task = beside(gpu, &x, &mut y, 0.5).unwrap();
        scale(gpu, &x, &mut z, 3.0).unwrap();
        task.join().unwrap();
        assert_eq!((y.download().unwrap(), z.download().unwrap()), (vec![1.0; COUNT], vec![6.0; COUNT]));
        // What is dropped is waited for.
        drop(beside(gpu, &y, &mut z, 4.0).unwrap());
        assert_eq!(z.download().unwrap(), [4.0; COUNT]);
    });
}

#[test]
fn what_was_not_waited_for_is_an_error() {
    each(|gpu| {
        let (mut x, mut y) = (gpu.of(&[2.0; COUNT]).unwrap(), gpu.zeros(COUNT).unwrap());
        let mut z = gpu.zeros(COUNT).unwrap();
        let task = beside(gpu, &x, &mut y, 0.5).unwrap();
        says(y.download(), "reads memory that a task of the lane Kernels writes");
        says(
            scale(gpu, &y, &mut z, 1.0),
            "scale: it reads memory that a task of the lane Kernels writes: join that first",
        );
        says(scale(gpu, &z, &mut x, 1.0), "scale: it writes memory that a task of the lane Kernels reads");
        says(z.copy_from(&y), "reads memory");
        says(x.fill_zero(), "writes memory");
        says(gpu.beside(Lane::Copies, || z.copy_from(&y)), "reads memory");
        // Reading together is no harm, and the lane itself does one after the other.
        scale(gpu, &x, &mut z, 1.0).unwrap();
        let next = beside(gpu, &x, &mut y, 0.25).unwrap();
        next.join().unwrap();
        drop(task);
        assert_eq!(y.download().unwrap(), [0.5; COUNT]);
    });
}

/// What the checks of addresses do not see: it is there at once, or not before it was waited for.
#[test]
fn seeds_say_when_it_is_done() {
    for (seed, there) in [(0, true), (1, false), (2, true)] {
        let gpu = Gpu::emulated(seed);
        let (x, mut y) = (gpu.of(&[2.0; COUNT]).unwrap(), gpu.empty(COUNT).unwrap());
        let task = beside(&gpu, &x, &mut y, 0.5).unwrap();
        let look = || gpu.backend.download(y.address(), &mut [0; 4 * COUNT]).is_ok();
        assert_eq!(look(), there, "{seed}");
        task.join().unwrap();
        assert!(look());
    }
}

#[test]
fn memory_stays_until_the_task_is_done() {
    each(|gpu| {
        let (x, mut y) = (gpu.of(&[2.0; COUNT]).unwrap(), gpu.empty(COUNT).unwrap());
        let task = beside(gpu, &x, &mut y, 0.5).unwrap();
        let other = gpu.zeros::<u8>(10).unwrap();
        drop((x, other));
        assert_eq!(gpu.usage().now, 2 * TAKEN, "what no task uses goes at once");
        task.join().unwrap();
        assert_eq!(gpu.usage().now, TAKEN);
        let task = gpu.beside(Lane::Kernels, || {
            let mut own = gpu.empty(COUNT)?;
            own.copy_from(&y)
        });
        assert_eq!(gpu.usage().now, 2 * TAKEN, "its own workspace, too");
        gpu.synchronize().unwrap();
        assert_eq!(gpu.usage().now, TAKEN);
        drop(task);
    });
}

#[test]
fn what_goes_wrong_in_a_task_is_told() {
    each(|gpu| {
        let (x, mut y) = (gpu.empty::<f32>(COUNT).unwrap(), gpu.empty(COUNT).unwrap());
        match beside(gpu, &x, &mut y, 1.0) {
            // Found when it is done: late, and here nobody asks the task itself.
            Ok(task) => {
                drop(task);
                says(gpu.synchronize(), "a read of what nobody has written");
                gpu.synchronize().unwrap();
            }
            Err(error) => assert!(error.to_string().contains("a read of what nobody has written"), "{error}"),
        }
        says(gpu.beside(Lane::Copies, || gpu.beside(Lane::Kernels, || Ok(())).map(drop)), "is being asked already");
        says(gpu.beside(Lane::Copies, || gpu.of(&[1u8]).map(drop)), "the host waits for it");
        // And the main queue is asked again.
        assert_eq!(gpu.of(&[1u8]).unwrap().download().unwrap(), [1]);
    });
}

#[test]
fn pinned_memory_keeps_what_was_copied_there() {
    each(|gpu| {
        let host: HostBuffer<f32> = gpu.pinned(2 * COUNT).unwrap();
        assert_eq!((gpu.usage().now, gpu.usage().pinned), (0, 800));
        let x = gpu.of(&(0..COUNT).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        let expected = x.download().unwrap();
        let (mut half, other) = (host.part(COUNT..2 * COUNT).unwrap(), host.part(0..COUNT).unwrap());
        let out = gpu.beside(Lane::Copies, || half.copy_from(&x)).unwrap();
        let mut y = gpu.empty(COUNT).unwrap();
        says(y.copy_from_host(&half), "reads memory that a task of the lane Copies writes");
        let back = gpu.beside(Lane::Copies, || y.copy_from_host(&half)).unwrap();
        drop((out, back));
        assert_eq!((y.download().unwrap(), half.values().unwrap()), (expected.clone(), expected));
        says(other.values(), "never written");
        says(y.copy_from_host(&host), "values to copy in");
        let task = gpu.beside(Lane::Copies, || y.copy_from_host(&half)).unwrap();
        drop((half, other, host));
        assert_eq!(gpu.usage().pinned, 800, "a task still reads it");
        task.join().unwrap();
        assert_eq!(gpu.usage().pinned, 0);
    });
}
