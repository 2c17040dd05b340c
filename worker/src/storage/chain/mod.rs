//! Keys from AWS's usual places, for machines whose operator set none: a profile, a web identity, the container's or the
//! machine's own role. They are looked for when a store is used for the first time, and again before what was found ends.

mod carrier;
mod places;

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use tokio::sync::OnceCell;

use super::s3_client::Line;
use crate::net::{NetError, Trouble, TroubleKind};

/// Looking for a key, in all places.
const PATIENCE: Duration = Duration::from_secs(20);
/// A key is asked for again after so long at the latest, because files and roles change, and after half of its life.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// A key that signs a link is not older, because the link ends with the key.
const KEPT_FOR_LINKS: Duration = Duration::from_secs(60);
/// While a key is good, it is not asked for sooner after it could not be had.
const PAUSE: Duration = Duration::from_secs(30);

/// Why there is no key.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// There is none, and waiting does not help: what is wrong, and what to set.
    Missing(String),
    /// What keeps a request from its answer.
    Net(NetError),
}

// === impl Obstacle ===

impl Obstacle {
    /// Trying again may help.
    fn for_now(why: impl Into<String>) -> Self {
        NetError::from(Trouble::new(TroubleKind::ServerFailed, why)).into()
    }
}

impl From<NetError> for Obstacle {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(why) => formatter.write_str(why),
            Self::Net(error) => error.fmt(formatter),
        }
    }
}

impl Error for Obstacle {}

/// AWS's usual places, and what was found there. Its copies share it.
#[derive(Clone, Default)]
pub struct Chain(Arc<State>);

#[derive(Default)]
struct State {
    /// One asks, the others wait for what it finds.
    asking: tokio::sync::Mutex<()>,
    found: Mutex<Option<Found>>,
    region: OnceCell<String>,
}

#[derive(Clone)]
struct Found {
    key: Credentials,
    asked: SystemTime,
    /// From then on it is asked for again.
    stale: SystemTime,
}

// === impl Found ===

impl Found {
    fn new(key: Credentials, now: SystemTime) -> Self {
        let stale = now + half_of_life(&key, now).min(KEPT);
        Self { key, asked: now, stale }
    }

    fn is_good(&self, now: SystemTime) -> bool {
        self.key.expiry().is_none_or(|end| end > now)
    }

    /// A clock that went back makes it old.
    fn is_young(&self, now: SystemTime, most: Duration) -> bool {
        self.is_good(now) && now < self.stale && now.duration_since(self.asked).is_ok_and(|age| age < most)
    }
}

fn half_of_life(key: &Credentials, now: SystemTime) -> Duration {
    key.expiry().map_or(Duration::MAX, |end| end.duration_since(now).unwrap_or_default() / 2)
}

impl fmt::Debug for Chain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Chain")
    }
}

// === impl Chain ===

impl Chain {
    /// When the key ends, if one was found and it does.
    pub(super) fn ends(&self) -> Option<SystemTime> {
        self.found()?.key.expiry()
    }

    /// A key for requests.
    pub(super) async fn key(&self, line: &Line) -> Result<Credentials, Obstacle> {
        self.not_older(KEPT, line).await
    }

    /// Sees to it that links that are made now live as long as they can.
    pub(super) async fn renew(&self, line: &Line) -> Result<(), Obstacle> {
        self.not_older(KEPT_FOR_LINKS, line).await.map(|_| ())
    }

    /// The region that a profile says or, `of_machine`, that this machine is in. Only where there is a key, so that nobody
    /// waits twice for a machine that knows neither.
    pub(super) async fn region(&self, of_machine: bool, line: &Line) -> Result<Option<&str>, Obstacle> {
        if let Some(region) = self.0.region.get() {
            return Ok(Some(region));
        }
        self.key(line).await?;
        let looked = line.patience.within(PATIENCE, "finding the region", places::region(of_machine, line)).await?;
        Ok(match looked {
            Some(region) => Some(self.0.region.get_or_init(|| async { region }).await),
            None => None,
        })
    }

    async fn not_older(&self, age: Duration, line: &Line) -> Result<Credentials, Obstacle> {
        let asked =
            line.patience.within(PATIENCE, "finding the key of the store", Box::pin(self.kept_or_new(age, line))).await;
        let obstacle = match asked.map_err(Obstacle::from).flatten() {
            Ok(key) => return Ok(key),
            Err(obstacle) => obstacle,
        };
        if matches!(obstacle, Obstacle::Net(NetError::Cancelled | NetError::Deadline(_))) {
            return Err(obstacle);
        }
        let now = SystemTime::now();
        match self.found() {
            None => Err(obstacle),
            Some(found) if found.is_good(now) => {
                tracing::warn!("{obstacle}; the key that was found before is still good");
                let stale = now + half_of_life(&found.key, now).min(PAUSE);
                self.keep(Found { asked: now, stale, ..found.clone() });
                Ok(found.key)
            }
            // There was one, so there may be one again.
            Some(_) => Err(Obstacle::for_now(obstacle.to_string())),
        }
    }

    async fn kept_or_new(&self, age: Duration, line: &Line) -> Result<Credentials, Obstacle> {
        let _asking = self.0.asking.lock().await;
        if let Some(found) = self.found().filter(|found| found.is_young(SystemTime::now(), age)) {
            return Ok(found.key);
        }
        let key = places::key(line).await?;
        self.keep(Found::new(key.clone(), SystemTime::now()));
        Ok(key)
    }

    fn found(&self) -> Option<Found> {
        self.0.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, found: Found) {
        *self.0.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }
}

/// The chain as the SDK asks it, for one client.
pub(super) struct Asked {
    pub(super) chain: Chain,
    pub(super) line: Arc<Line>,
    /// Here, because only the SDK's own words would remain of it.
    pub(super) obstacle: Arc<Mutex<Option<Obstacle>>>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Asked")
    }
}

impl ProvideCredentials for Asked {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.chain.key(&self.line).await.map_err(|obstacle| {
                *self.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = Some(obstacle);
                CredentialsError::not_loaded_no_source()
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn found(life: Option<Duration>, now: SystemTime) -> Found {
        let key = Credentials::new("id", "S3CR3T", Some("S3CR3T".into()), life.map(|life| now + life), "test");
        Found::new(key, now)
    }

    #[test]
    fn a_key_is_asked_for_again_before_it_ends() {
        let now = SystemTime::now();
        let lent = found(Some(10 * MINUTE), now);
        assert!(lent.is_young(now + 4 * MINUTE, KEPT) && !lent.is_young(now + 5 * MINUTE, KEPT));
        assert!(lent.is_good(now + 9 * MINUTE) && !lent.is_good(now + 10 * MINUTE));
        for life in [None, Some(600 * MINUTE)] {
            let long = found(life, now);
            assert!(long.is_young(now + 14 * MINUTE, KEPT) && !long.is_young(now + 15 * MINUTE, KEPT));
            assert!(!long.is_young(now + 2 * MINUTE, KEPT_FOR_LINKS) && !long.is_young(now - MINUTE, KEPT));
        }
        assert!(!found(Some(Duration::ZERO), now).is_young(now, KEPT));
    }

    #[test]
    fn what_was_found_is_not_shown() {
        let chain = Chain::default();
        chain.keep(found(Some(MINUTE), SystemTime::now()));
        assert!(chain.ends().is_some() && !format!("{chain:?}").contains("S3CR3T"));
    }
}
