//! The system's allocator.

/// All threads are to allocate from one heap; to be called before the first thread is started. glibc gives each thread a
/// heap of its own, where buffers that a thread leaves behind are holes that no other can fill: in runs of 2.5 GB that is
/// up to 0.5 GB, and another number each time. Large steps, which ask for few and large buffers, take no longer
/// for it; small ones take some hundredths longer. Does nothing where the allocator is not glibc's.
pub fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt may be called at any time from any thread, and touches no memory in use.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

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
