//! `brightrun`: fine-tunes Qwen MoE models with 4-bit QLoRA.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    brightrun_worker::run()
}
