//! The worker's side of RunPod's protocol against a simulator of the platform: jobs are taken, shown, stopped and answered
//! as the official SDK does it, and none is lost or answered twice, whatever the platform does.

#[path = "../shared/training.rs"]
mod bench;
mod ends;
mod faults;
#[path = "../shared/obedient.rs"]
mod obedient;
mod training;
mod usual;

use std::{collections::HashMap, sync::Arc, time::Duration};

use brightrun_tests::platform::{JobView, Options, Platform, Status, Urls, WORKER};
use brightrun_worker::{
    net::Network,
    runpod::{Client, ClientLimits, Endpoints, Pace, Serving},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use bench::PATIENCE;
use obedient::Obedient;

/// A platform, and a worker at work for it.
struct Bench {
    platform: Arc<Platform>,
    work: Obedient,
    leave: CancellationToken,
    working: JoinHandle<()>,
}

impl Bench {
    fn start() -> Self {
        Self::start_with(Options { ping_milliseconds: 200, ..Options::default() }, Urls::Full)
    }

    fn start_with(options: Options, urls: Urls) -> Self {
        let platform = Arc::new(Platform::start_with(options).unwrap());
        Self::at(platform, WORKER, urls)
    }

    /// With the pauses of a real worker.
    fn paced(pace: Pace) -> Self {
        let platform = Platform::start_with(Options { ping_milliseconds: 200, ..Options::default() }).unwrap();
        Self::with(Arc::new(platform), WORKER, Urls::Full, pace, |serving| serving)
    }

    /// A worker for a platform that is there.
    fn at(platform: Arc<Platform>, worker: &str, urls: Urls) -> Self {
        let pace = Pace {
            progress: Duration::from_millis(100),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_millis(400),
        };
        Self::with(platform, worker, urls, pace, |serving| serving)
    }

    fn with(
        platform: Arc<Platform>,
        worker: &str,
        urls: Urls,
        pace: Pace,
        set: impl FnOnce(Serving<Obedient>) -> Serving<Obedient>,
    ) -> Self {
        let variables: HashMap<String, String> = platform.environment_of(worker, urls).into_iter().collect();
        let endpoints = Endpoints::from_variables(|name| variables.get(name).cloned()).unwrap().unwrap();
        let limits =
            ClientLimits { hold: Duration::from_secs(10), answer: Duration::from_secs(5), ..Default::default() };
        let client = Arc::new(Client::new(endpoints, Network::default(), limits).unwrap());
        let (work, leave) = (Obedient::default(), CancellationToken::new());
        let serving = set(Serving::new(client, work.clone(), pace));
        let until = leave.clone();
        let working = tokio::spawn(async move { serving.run(&until).await.unwrap() });
        Self { platform, work, leave, working }
    }

    async fn ends(&self, job: &str, status: Status) -> JobView {
        self.platform.until_status(job, status, PATIENCE).await.unwrap()
    }

    /// The worker goes, and everything that it has said was right.
    async fn goes(self) -> Arc<Platform> {
        self.leave.cancel();
        self.working.await.unwrap();
        let problems = self.platform.problems();
        assert!(problems.is_empty(), "{problems:#?}");
        self.platform
    }
}
