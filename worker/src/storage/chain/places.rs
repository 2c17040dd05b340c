//! The places themselves, in the order of AWS's own SDK. The environment is not among them: its keys are settings, and are
//! read before.

use std::{env, error::Error};

use aws_config::{
    ecs::EcsCredentialsProvider,
    environment::EnvironmentVariableRegionProvider,
    imds::{credentials::ImdsCredentialsProvider, region::ImdsRegionProvider},
    meta::region::{ProvideRegion, RegionProviderChain},
    profile::{ProfileFileCredentialsProvider, region::ProfileFileRegionProvider},
    provider_config::ProviderConfig,
    web_identity_token::WebIdentityTokenCredentialsProvider,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError},
};
use aws_sdk_s3::config::{BehaviorVersion, Region};

use super::{Obstacle, carrier::Carrier};
use crate::storage::{s3::NO_REGION, s3_client::Line};

/// The profile that is used instead of the one called `default`.
const PROFILE: &str = "AWS_PROFILE";
/// What an operator can always do.
const OTHERWISE: &str = "set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY";
/// How the SDK begins what it says of profiles, and what it says of kinds that are left out of it here.
const OF_PROFILES: &str = "ProfileFile provider could not be built: ";
const LEFT_OUT: &str = "cargo feature";

struct Place {
    name: &'static str,
    advice: &'static str,
    provider: Box<dyn ProvideCredentials>,
}

fn places(settings: &ProviderConfig) -> [Place; 4] {
    [
        Place {
            name: "the profile",
            advice: "check AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE",
            provider: Box::new(ProfileFileCredentialsProvider::builder().configure(settings).build()),
        },
        Place {
            name: "the web identity",
            advice: "check AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN and what the role trusts",
            provider: Box::new(WebIdentityTokenCredentialsProvider::builder().configure(settings).build()),
        },
        Place {
            name: "the container's credentials service",
            advice: "check AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            provider: Box::new(EcsCredentialsProvider::builder().configure(settings).build()),
        },
        Place {
            name: "the machine's metadata service",
            advice: "check the role of the machine",
            provider: Box::new(ImdsCredentialsProvider::builder().configure(settings).build()),
        },
    ]
}

fn settings(carrier: Carrier) -> ProviderConfig {
    ProviderConfig::without_region().with_behavior_version(Some(BehaviorVersion::latest())).with_http_client(carrier)
}

/// The first key that there is. Files are read anew each time: others write them.
pub(super) async fn key(line: &Line) -> Result<Credentials, Obstacle> {
    let carrier = Carrier::beside(line);
    let settings = settings(carrier.clone());
    // For questions to AWS about roles; the store may be in another one.
    let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::builder().configure(&settings).build())
        .or_else(Region::from_static(NO_REGION));
    let settings = settings.with_region(region.region().await);
    for place in places(&settings) {
        carrier.take_heard();
        match place.provider.provide_credentials().await {
            Ok(key) => return Ok(key),
            Err(CredentialsError::CredentialsNotLoaded(_)) => {}
            Err(error) => return Err(refused(&place, &carrier, &error)),
        }
    }
    Err(Obstacle::Missing(nowhere()))
}

/// The region that the profile says, or else, `of_machine`, the machine's metadata.
pub(super) async fn region(of_machine: bool, line: &Line) -> Option<String> {
    let settings = settings(Carrier::beside(line));
    let profile = ProfileFileRegionProvider::builder().configure(&settings).build();
    let region = match profile.region().await {
        None if of_machine => ImdsRegionProvider::builder().configure(&settings).build().region().await,
        found => found,
    };
    region.map(|region| region.to_string())
}

fn refused(place: &Place, carrier: &Carrier, error: &CredentialsError) -> Obstacle {
    let Place { name, advice, .. } = place;
    match carrier.take_heard() {
        Some(heard) if heard.temporary => {
            Obstacle::for_now(format!("{name} gives no key for the store: {}", heard.why))
        }
        Some(heard) => {
            Obstacle::Missing(format!("{name} gives no key for the store: {}; {advice}, or {OTHERWISE}", heard.why))
        }
        None => {
            let why = of_profile(error).map(|why| format!(": {why}")).unwrap_or_default();
            Obstacle::Missing(format!("{name} gives no key for the store{why}; {advice}, or {OTHERWISE}"))
        }
    }
}

/// What the SDK says of a profile: names of profiles and of their settings. Of other places it may repeat answers.
fn of_profile(error: &CredentialsError) -> Option<String> {
    let said = error.source()?.to_string();
    let said = said.strip_prefix(OF_PROFILES)?;
    if said.contains(LEFT_OUT) {
        return Some("it needs single sign-on, a login or a process, which are not supported".into());
    }
    Some(said.to_owned())
}

fn nowhere() -> String {
    let profile = env::var(PROFILE).ok().filter(|name| !name.is_empty());
    let profile = profile.map(|_| "; AWS_PROFILE is set, but there is no such profile with a key").unwrap_or_default();
    format!(
        "there is no key for the store: neither in BUCKET_ACCESS_KEY_ID, S3_ACCESS_KEY_ID or AWS_ACCESS_KEY_ID nor in a \
         profile, a web identity, the container or the machine's metadata{profile}; {OTHERWISE}, or AWS_PROFILE and \
         AWS_SHARED_CREDENTIALS_FILE"
    )
}
