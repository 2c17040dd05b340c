//! What the compiler said of each kernel.

use std::process::ExitCode;

use anyhow::Result;
use brightrun_kernels::gpu::RESOURCES;

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
    let spilling = sorted.iter().filter(|resources| resources.spills > 0 || resources.stack > 0).count();
    println!("{} compiled kernels, {spilling} with memory beside their registers", sorted.len());
    Ok(if spilling == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
