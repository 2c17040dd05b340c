//! Whole runs of the binary that are killed, interrupted, starved of disk, damaged and misused: each ends right, goes on
//! to the very same adapter, or says clearly why not.
#![cfg(target_os = "linux")]

mod damage;
mod full_disk;
mod kills;
mod moments;
mod place;
mod platform;
mod portrait;
mod settings;
mod shim;
mod signals;
mod stops;
mod together;
