//! The system's allocator.

/// Gives freed memory back to the system that the allocator holds on to; a few milliseconds. Worth it where a phase ends that
/// freed much, since holes in its heap are resident until then. Does nothing where the allocator is not glibc's.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time from any thread; it takes the locks of the arenas that it looks at and
    // touches no memory in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
