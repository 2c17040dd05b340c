//! What is still on its way when nobody waits for it.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, sync::watch, time::timeout};

/// Counts tasks that nobody waits for.
#[derive(Clone)]
pub(super) struct Underway(watch::Sender<usize>);

// === impl Underway ===

impl Underway {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// Runs a task that counts until its end, whatever that is.
    pub(super) fn run(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let counted = Counted::begin(self.0.clone());
        runtime.spawn(async move {
            let _counted = counted;
            task.await;
        });
    }

    /// Waits until there is none left, at most so long; how many there are then.
    pub(super) async fn settle(&self, most: Duration) -> usize {
        let mut left = self.0.subscribe();
        let settled = timeout(most, left.wait_for(|count| *count == 0)).await.is_ok();
        if settled { 0 } else { *self.0.borrow() }
    }
}

struct Counted(watch::Sender<usize>);

impl Counted {
    fn begin(count: watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn what_is_under_way_is_waited_for_but_not_for_ever() {
        let underway = Underway::new();
        assert_eq!(underway.settle(Duration::ZERO).await, 0);
        underway.run(&Handle::current(), sleep(Duration::from_millis(30)));
        underway.run(&Handle::current(), async { panic!("as it should") });
        assert_eq!(underway.settle(Duration::from_secs(60)).await, 0);
        underway.run(&Handle::current(), sleep(Duration::from_secs(3600)));
        assert_eq!(underway.settle(Duration::from_millis(20)).await, 1);
    }
}
