//! The newest of many messages, one at a time and not too often. Whoever speaks never waits, however slow the listener is.

use std::{
    future::Future,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Sends the newest of what it is given; what was not sent before something newer came is forgotten.
pub(crate) struct Newest<T> {
    newest: watch::Sender<Option<T>>,
    telling: Mutex<Option<JoinHandle<()>>>,
    quiet: CancellationToken,
}

// === impl Newest ===

impl<T: Clone + Send + Sync + 'static> Newest<T> {
    /// Begins; nothing is sent yet. `pause`: so long after the one message (the first) the other is not sent. `tell` sends a
    /// message, and says whether to go on.
    pub(crate) fn begin<F>(
        pause: impl Fn(&T, &T) -> Duration + Send + Sync + 'static,
        tell: impl FnMut(T) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ControlFlow<()>> + Send + 'static,
    {
        let (newest, news) = watch::channel(None);
        let quiet = CancellationToken::new();
        let telling = tokio::spawn(send(news, pause, tell, quiet.clone()));
        Self { newest, telling: Mutex::new(Some(telling)), quiet }
    }

    /// There is something newer.
    pub(crate) fn put(&self, message: T) {
        self.newest.send_replace(Some(message));
    }

    /// Sends nothing more. A message that is on its way is waited for, so that nothing overtakes it.
    pub(crate) async fn fall_silent(&self) {
        self.quiet.cancel();
        let telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(telling) = telling {
            // It ends by itself, so there is nothing to learn from how.
            let _ = telling.await;
        }
    }
}

async fn send<T: Clone, F: Future<Output = ControlFlow<()>>>(
    mut news: watch::Receiver<Option<T>>,
    pause: impl Fn(&T, &T) -> Duration,
    mut tell: impl FnMut(T) -> F,
    quiet: CancellationToken,
) {
    let mut last: Option<(Instant, T)> = None;
    while matches!(quiet.run_until_cancelled(news.changed()).await, Some(Ok(()))) {
        // What comes while this waits may be more urgent.
        let message = loop {
            let Some(message) = news.borrow_and_update().clone() else { break None };
            let Some((at, told)) = &last else { break Some(message) };
            let due = *at + pause(told, &message);
            if Instant::now() >= due {
                break Some(message);
            }
            tokio::select! {
                () = quiet.cancelled() => return,
                () = sleep_until(due) => {}
                changed = news.changed() => if changed.is_err() { return },
            }
        };
        let Some(message) = message else { continue };
        // `quiet` does not stop one that is on its way.
        if tell(message.clone()).await.is_break() {
            return;
        }
        last = Some((Instant::now(), message));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::time::sleep;

    use super::*;

    type Told = Arc<Mutex<Vec<u32>>>;

    /// Tens are urgent; sending takes `takes`, and ends for good with 99.
    fn newest(takes: Duration) -> (Newest<u32>, Told) {
        let told = Told::default();
        let telling = told.clone();
        let pause =
            |_: &u32, next: &u32| if next.is_multiple_of(10) { Duration::ZERO } else { Duration::from_secs(3600) };
        let newest = Newest::begin(pause, move |message| {
            let telling = telling.clone();
            async move {
                sleep(takes).await;
                telling.lock().unwrap().push(message);
                if message == 99 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        });
        (newest, told)
    }

    async fn until(told: &Told, expected: &[u32]) {
        for _ in 0..2000 {
            if *told.lock().unwrap() == expected {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn what_is_old_when_its_turn_comes_is_forgotten() {
        let (newest, told) = newest(Duration::from_millis(50));
        for message in [10, 20, 30, 40] {
            newest.put(message);
            tokio::task::yield_now().await;
        }
        until(&told, &[10, 40]).await;
    }

    #[tokio::test]
    async fn what_is_urgent_does_not_wait_for_what_is_not() {
        let (newest, told) = newest(Duration::ZERO);
        newest.put(1);
        until(&told, &[1]).await;
        newest.put(2);
        sleep(Duration::from_millis(20)).await;
        newest.put(20);
        until(&told, &[1, 20]).await;
    }

    #[tokio::test]
    async fn silence_waits_for_what_is_on_its_way_and_for_nothing_else() {
        let (newest, told) = newest(Duration::from_millis(100));
        newest.put(1);
        sleep(Duration::from_millis(20)).await;
        newest.put(2);
        newest.fall_silent().await;
        assert_eq!(*told.lock().unwrap(), [1]);
        newest.put(10);
        sleep(Duration::from_millis(150)).await;
        assert_eq!(*told.lock().unwrap(), [1]);
    }

    #[tokio::test]
    async fn whoever_gives_up_is_left_alone() {
        let (newest, told) = newest(Duration::ZERO);
        newest.put(99);
        until(&told, &[99]).await;
        newest.put(10);
        sleep(Duration::from_millis(20)).await;
        newest.fall_silent().await;
        assert_eq!(*told.lock().unwrap(), [99]);
    }
}
