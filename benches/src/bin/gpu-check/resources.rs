//! What the compiler said of each kernel.

use std::process::ExitCode;

use anyhow::Result;
use brightrun_kernels::gpu::{RESOURCES, Resources};

/// Known, and bearable: on cards newer than Hopper the loop that dropout has to itself keeps a few values beside its
/// registers; the main one does not.
const KNOWN: [(&str, &str); 4] = [
    ("gemm_rows_by_columns_drop_large", "sm_100"),
    ("gemm_rows_by_columns_drop_large", "sm_120"),
    ("linear_gradient_drop_large", "sm_100"),
    ("linear_gradient_drop_large", "sm_120"),
];

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
    let known = |resources: &&&Resources| KNOWN.contains(&(resources.kernel, resources.architecture));
    let unknown = spilling.len() - spilling.iter().filter(known).count();
    println!("{} compiled kernels, {} spill, {unknown} of them unexpectedly", sorted.len(), spilling.len());
    Ok(if unknown == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
