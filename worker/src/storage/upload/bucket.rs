//! A bucket: a file goes in, is compared with what lies there then, and gets a link.
//!
//! What is sent is protected by what every store knows: the signature covers the SHA-256 of the body, and `Content-MD5`
//! goes along. `x-amz-checksum-sha256`, which not all stores know, goes along until a store refuses it. Trailers, which
//! the SDK would choose, are not used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_runtime::auth::SigV4OperationSigningConfig;
use aws_sdk_s3::{
    config::{ConfigBag, Intercept, RuntimeComponents},
    error::{BoxError, ProvideErrorMetadata, SdkError},
    types::ChecksumMode,
};
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use base64_simd::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use super::{
    error::{Failure, UploadError},
    held::{Held, Likeness},
    measured::{Measured, Piece},
    names,
    refusal::StoreRefusal,
    sending::Sending,
    settings::BucketSettings,
};
use crate::{
    redacted::shown_path,
    storage::{
        error::{Trouble, TroubleKind},
        s3_client::{Addressing, Checksums, Line, S3Client},
    },
};

/// The object's own note of its SHA-256, in hexadecimal digits.
pub(super) const NOTE: &str = "sha256";
/// Between two pieces of an object that is read back.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// A bucket that files of one job are delivered to.
pub(super) struct Bucket<'a> {
    pub(super) sending: &'a Sending,
    pub(super) settings: &'a BucketSettings,
    pub(super) region: String,
    job_id: &'a str,
    /// For requests without a body.
    pub(super) questions: S3Client,
    /// Whether the store takes the header of a checksum that not all stores know.
    knows_checksums: AtomicBool,
}

/// An object: its key, and how it is called in messages.
pub(super) struct Target {
    pub(super) key: String,
    pub(super) place: String,
}

// === impl Bucket ===

impl<'a> Bucket<'a> {
    pub(super) async fn new(
        sending: &'a Sending,
        settings: &'a BucketSettings,
        job_id: &'a str,
    ) -> Result<Self, UploadError> {
        let place = place(settings);
        let mut attempts = sending.attempts(&place);
        let region = loop {
            match Box::pin(settings.s3.region(&sending.line)).await {
                Ok(region) => break region.into_owned(),
                Err(obstacle) => attempts.after(sending.kept_from(obstacle, &place)).await?,
            }
        };
        let questions = client(settings, &region, sending.line.clone());
        Ok(Self { sending, settings, region, job_id, questions, knows_checksums: AtomicBool::new(true) })
    }

    /// For requests with a body of so many bytes.
    pub(super) fn client_for(&self, bytes: u64) -> Result<S3Client, UploadError> {
        Ok(client(self.settings, &self.region, self.sending.line_for(bytes)?))
    }

    pub(super) fn target(&self, name: &str) -> Target {
        let key = self.settings.key_of(self.job_id, name);
        let place = format!("s3://{}/{}", self.settings.bucket, shown_path(&key));
        Target { key, place }
    }

    /// Finds out whether the bucket is there, as far as the key may ask.
    pub(super) async fn look(&self) -> Result<(), UploadError> {
        let place = place(self.settings);
        let mut attempts = self.sending.attempts(&place);
        loop {
            let asked = self.questions.sdk.head_bucket().bucket(&self.settings.bucket).send().await;
            let Err(error) = asked else { return Ok(()) };
            let failure = match StoreRefusal::of(&error) {
                Some(refusal) if refusal.status == 404 => return Err(UploadError::NoSuchBucket { place }),
                // The answer has no body; the region says why it is refused.
                Some(refusal) if matches!(refusal.status, 301 | 307 | 400) && refusal.elsewhere(&self.region) => {
                    return Err(UploadError::WrongRegion { place, region: refusal.region });
                }
                // A key that may put and get need not be allowed to ask.
                Some(refusal) if refusal.status < 500 && refusal.status != 429 => return Ok(()),
                _ => self.failed(&self.questions, &error, &place, "", 0),
            };
            attempts.after(failure).await?;
        }
    }

    /// Brings a file there and compares. `sent` is told how many bytes went. Says whether anything had to be sent.
    pub(super) async fn deliver(
        &self,
        measured: &Measured,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<bool, UploadError> {
        let target = self.target(&measured.name);
        if self.held(&target, true).await?.is_some_and(|held| held.need_not_be_sent(measured)) {
            sent(measured.whole.bytes);
            return Ok(false);
        }
        match measured.parts.len() {
            0 | 1 => self.put(measured, &target).await.inspect(|()| sent(measured.whole.bytes))?,
            _ => self.send_parts(measured, &target, sent).await?,
        }
        self.compare(measured, &target).await?;
        Ok(true)
    }

    async fn put(&self, measured: &Measured, target: &Target) -> Result<(), UploadError> {
        let client = self.client_for(measured.whole.bytes)?;
        let mut attempts = self.sending.attempts(&target.place);
        loop {
            let Err(failure) = self.put_once(&client, measured, target).await else { return Ok(()) };
            measured.still_there()?;
            attempts.after(failure).await?;
        }
    }

    async fn put_once(&self, client: &S3Client, measured: &Measured, target: &Target) -> Result<(), Failure> {
        let piece = &measured.whole;
        loop {
            let with_checksum = self.knows_checksums.load(Ordering::Relaxed);
            let checksum = with_checksum.then(|| BASE64.encode_to_string(piece.sha256));
            let request = client.sdk.put_object().bucket(&self.settings.bucket).key(&target.key);
            let request = request.content_type(names::content_type(&measured.name)).metadata(NOTE, piece.hex());
            let request = request.content_md5(BASE64.encode_to_string(piece.md5)).set_checksum_sha256(checksum);
            let request = request.content_length(length(piece.bytes)).body(measured.body(piece).await?);
            let Err(error) = request.customize().interceptor(SignedBody(piece.hex())).send().await else {
                return Ok(());
            };
            if with_checksum && StoreRefusal::of(&error).is_some_and(|refusal| refusal.may_mean_a_header()) {
                tracing::info!("{}: the store may not know checksums; trying without", target.place);
                self.knows_checksums.store(false, Ordering::Relaxed);
                continue;
            }
            return Err(self.failed(client, &error, &target.place, &target.key, piece.bytes));
        }
    }

    /// What lies there. `perhaps`: a store that does not tell is taken for an empty one.
    async fn held(&self, target: &Target, perhaps: bool) -> Result<Option<Held>, UploadError> {
        let mut attempts = self.sending.attempts(&target.place);
        loop {
            let request = self.questions.sdk.head_object().bucket(&self.settings.bucket).key(&target.key);
            let error = match request.checksum_mode(ChecksumMode::Enabled).send().await {
                Ok(answer) => return Ok(Some(Held::of(&answer))),
                Err(error) => error,
            };
            match StoreRefusal::of(&error).map(|refusal| refusal.status) {
                Some(404) => return Ok(None),
                Some(status) if perhaps && status < 500 && status != 429 => return Ok(None),
                _ => {}
            }
            attempts.after(self.failed(&self.questions, &error, &target.place, &target.key, 0)).await?;
        }
    }

    /// Whether what lies there is what was sent.
    async fn compare(&self, measured: &Measured, target: &Target) -> Result<(), UploadError> {
        let corrupt = |what: String| Err(UploadError::Corrupt { place: target.place.clone(), what });
        let Some(held) = self.held(target, false).await? else {
            return corrupt("it does not know the file".into());
        };
        match held.likeness(measured) {
            Likeness::Same | Likeness::Untold => Ok(()),
            Likeness::Different(what) => corrupt(what),
            // Some stores give tags that look like hashes and are none; the bytes decide.
            Likeness::Doubtful => {
                tracing::info!("{}: the store's tag is not the hash of what was sent; reading it back", target.place);
                match self.read_back(target).await? == measured.whole.sha256 {
                    true => Ok(()),
                    false => corrupt("read back, it has another SHA-256".into()),
                }
            }
        }
    }

    async fn read_back(&self, target: &Target) -> Result<[u8; 32], UploadError> {
        let mut attempts = self.sending.attempts(&target.place);
        loop {
            match self.hash_of_object(target).await {
                Ok(hash) => return Ok(hash),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    async fn hash_of_object(&self, target: &Target) -> Result<[u8; 32], Failure> {
        let request = self.questions.sdk.get_object().bucket(&self.settings.bucket).key(&target.key);
        let answer = request.send().await;
        let mut answer = answer.map_err(|error| self.failed(&self.questions, &error, &target.place, &target.key, 0))?;
        let mut hash = Sha256::new();
        loop {
            let piece = self.sending.line.patience.within(IDLE, "the next byte", answer.body.try_next()).await;
            let piece = piece.map_err(|error| self.sending.failure(error, &target.place))?;
            match piece
                .map_err(|_| Trouble::new(TroubleKind::ServerFailed, "the connection ended before the object"))?
            {
                Some(bytes) => hash.update(&bytes),
                None => return Ok(hash.finalize().into()),
            }
        }
    }

    /// What a request of the SDK's failed of.
    pub(super) fn failed<E: ProvideErrorMetadata>(
        &self,
        client: &S3Client,
        error: &SdkError<E>,
        place: &str,
        key: &str,
        bytes: u64,
    ) -> Failure {
        if let Some(obstacle) = client.take_failure() {
            return self.sending.kept_from(obstacle, place);
        }
        match StoreRefusal::of(error) {
            Some(refusal) => refusal.meaning(place, key, bytes),
            None => {
                let said = "the request could not be made; check the endpoint and the bucket's name".into();
                UploadError::Refused { place: place.to_owned(), said }.into()
            }
        }
    }
}

fn place(settings: &BucketSettings) -> String {
    format!("s3://{}", settings.bucket)
}

fn client(settings: &BucketSettings, region: &str, line: Arc<Line>) -> S3Client {
    let addressing = if settings.path_style { Addressing::Path } else { Addressing::Host };
    S3Client::new(&settings.s3, region, addressing, Checksums::Caller, line)
}

pub(super) fn length(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// === impl Piece ===

impl Piece {
    /// Its SHA-256 in hexadecimal digits.
    pub(super) fn hex(&self) -> String {
        hex::encode(self.sha256)
    }
}

/// Puts the SHA-256 of the body, which is known already, into the signature. The SDK does so only for what it holds in
/// memory.
#[derive(Debug)]
pub(super) struct SignedBody(pub(super) String);

// === impl SignedBody ===

impl Intercept for SignedBody {
    fn name(&self) -> &'static str {
        "SignedBody"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        configuration: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(mut signing) = configuration.load::<SigV4OperationSigningConfig>().cloned() {
            signing.signing_options.payload_override = Some(SignableBody::Precomputed(self.0.clone()));
            configuration.interceptor_state().store_put(signing);
        }
        Ok(())
    }
}
