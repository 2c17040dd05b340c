//! Compiles the kernels for GPUs: with `emulation` for the processor, where tests check every access of theirs; with `cuda`
//! for cards, by nvcc.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;

fn main() {
    if let Err(error) = build() {
        // A panic would say the same, with more words around it.
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn build() -> io::Result<()> {
    let kernels = kernels()?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=cuda");
    kernels.iter().for_each(|kernel| println!("cargo:rerun-if-changed={}", kernel.display()));
    emulation(&kernels);
    #[cfg(feature = "cuda")]
    cuda::build(&kernels)?;
    Ok(())
}

/// The source files of all kernels, in a fixed order.
fn kernels() -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["src", "cuda"] {
        collect(Path::new(folder), &mut found)?;
    }
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "cu") {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(feature = "emulation")]
fn emulation(kernels: &[PathBuf]) {
    let mut build = cc::Build::new();
    // Whole, since kernels make themselves known and nobody else names them. Optimised, or they would take minutes.
    build
        .cpp(true)
        .std("c++17")
        .include("cuda")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .link_lib_modifier("+whole-archive");
    // Products and sums are rounded one by one, as `multiply` and `add` promise.
    build.flag("-ffp-contract=off").flag("-xc++").flag("-Wno-unknown-pragmas");
    build.file("cuda/emulator/emulator.cpp").files(kernels).compile("emulated_kernels");
}

#[cfg(not(feature = "emulation"))]
fn emulation(_: &[PathBuf]) {}
