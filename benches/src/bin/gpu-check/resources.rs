//! What the compiler said of each kernel.

use std::process::ExitCode;

use anyhow::Result;
use brightrun_kernels::gpu::{RESOURCES, Resources};

/// Prints the table; a kernel that moves registers to memory and back is a failure.
pub(super) fn show() -> Result<ExitCode> {
    println!("{:<40} {:<8} {:>9} {:>8} {:>6} {:>7}", "kernel", "card", "registers", "shared", "stack", "spills");
    let mut sorted = RESOURCES.to_vec();
    sorted.sort_by_key(|resources| (resources.kernel, resources.architecture));
    for resources in &sorted {
        println!(
            "{:<40} {:<8} {:>9} {:>8} {:>6} {:>7}",
            resources.kernel,
            resources.architecture,
            resources.registers,
            resources.shared,
            resources.stack,
            resources.spills
        );
    }
    let spilling: Vec<_> = sorted.iter().filter(|resources| resources.spills > 0 || resources.stack > 0).collect();
    for Resources { kernel, architecture, stack, spills, .. } in &spilling {
        println!("{kernel} on {architecture} spills: {stack} bytes beside its registers, {spills} moved");
    }
    println!("{} compiled kernels, {} spill", sorted.len(), spilling.len());
    Ok(if spilling.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
