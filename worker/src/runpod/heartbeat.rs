//! Signs of life, from a thread that nothing else can keep busy.

use std::{io, sync::Arc, thread};

use tokio_util::sync::CancellationToken;

use super::{client::Client, held::Held};

/// From now on until `end`, tells the platform every few seconds which jobs are here. A ping that fails is logged once, until
/// one arrives again; the next one goes out all the same.
pub(super) fn heartbeat(client: Arc<Client>, held: Held, end: CancellationToken) -> io::Result<thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        runtime.block_on(async {
            let mut ticks = tokio::time::interval(client.endpoints().interval);
            // After a pause of the whole machine one ping is enough.
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut arriving = true;
            while end.run_until_cancelled(ticks.tick()).await.is_some() {
                let outcome = client.ping(&held.ids(), &end).await;
                match &outcome {
                    Ok(()) if !arriving => tracing::info!("pings arrive again"),
                    Err(why) if arriving && !end.is_cancelled() => {
                        tracing::warn!("the platform's ping does not work: {why}; it is tried again and again");
                    }
                    _ => {}
                }
                arriving = outcome.is_ok();
            }
        });
    })
}
