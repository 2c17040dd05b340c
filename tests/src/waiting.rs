//! Waiting for what happens beside a test.

use std::time::Duration;

/// Waits until something is so, which it is soon.
pub async fn soon(so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen");
}
