//! A large file goes in parts. Parts that never become an object cost money and are seen by nobody, so they are removed
//! in every way that this ends.

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use base64_simd::STANDARD as BASE64;
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    bucket::{Bucket, NOTE, SignedBody, Target, length},
    error::{Failure, UploadError},
    limits::UploadLimits,
    measured::{Measured, Piece},
    names,
    refusal::StoreRefusal,
    sending::Sending,
    settings::BucketSettings,
};
use crate::{net::Network, storage::s3_client::S3Client};

/// What lists and completions of uploads know them by.
const NO_SUCH_UPLOAD: &str = "NoSuchUpload";

impl Bucket<'_> {
    /// Sends a file in parts.
    pub(super) async fn send_parts(
        &self,
        measured: &Measured,
        target: &Target,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), UploadError> {
        let removal = Removal::of(self, target);
        // What a killed worker left of this file is of no use any more.
        removal.remove_leftovers(self).await;
        let mut open = OpenUpload(Some(removal));
        let outcome = self.parts(measured, target, sent, &mut open).await;
        match outcome {
            Ok(()) => open.done(),
            Err(_) => open.close(self.sending).await,
        }
        outcome
    }

    async fn parts(
        &self,
        measured: &Measured,
        target: &Target,
        sent: &(dyn Fn(u64) + Send + Sync),
        open: &mut OpenUpload,
    ) -> Result<(), UploadError> {
        let upload = self.begin(measured, target).await?;
        open.is(&upload);
        let most = measured.parts.iter().map(|part| part.bytes).max().unwrap_or_default();
        let client = self.client_for(most)?;
        let mut completed = Vec::with_capacity(measured.parts.len());
        for (part, number) in measured.parts.iter().zip(1..) {
            let tag = self.part(&client, measured, part, number, target, &upload).await?;
            completed.push(CompletedPart::builder().part_number(number).set_e_tag(tag).build());
            sent(part.bytes);
        }
        self.complete(&client, target, &upload, completed).await
    }

    async fn begin(&self, measured: &Measured, target: &Target) -> Result<String, UploadError> {
        let mut attempts = self.sending.attempts(&target.place);
        loop {
            let request = self.questions.sdk.create_multipart_upload().bucket(&self.settings.bucket).key(&target.key);
            let request = request.content_type(names::content_type(&measured.name));
            let failure = match request.metadata(NOTE, measured.whole.hex()).send().await {
                Ok(answer) => match answer.upload_id() {
                    Some(upload) => return Ok(upload.to_owned()),
                    None => refused(target, "it gives the upload no name"),
                },
                Err(error) => self.failed(&self.questions, &error, &target.place, &target.key, measured.whole.bytes),
            };
            attempts.after(failure).await?;
        }
    }

    async fn part(
        &self,
        client: &S3Client,
        measured: &Measured,
        part: &Piece,
        number: i32,
        target: &Target,
        upload: &str,
    ) -> Result<Option<String>, UploadError> {
        let mut attempts = self.sending.attempts(&target.place);
        loop {
            let request = client.sdk.upload_part().bucket(&self.settings.bucket).key(&target.key);
            let request = request.upload_id(upload).part_number(number).content_length(length(part.bytes));
            let request = request.content_md5(BASE64.encode_to_string(part.md5)).body(measured.body(part).await?);
            let failure = match request.customize().interceptor(SignedBody(part.hex())).send().await {
                Ok(answer) => return Ok(answer.e_tag().map(str::to_owned)),
                Err(error) => self.failed(client, &error, &target.place, &target.key, part.bytes),
            };
            measured.still_there()?;
            attempts.after(failure).await?;
        }
    }

    async fn complete(
        &self,
        client: &S3Client,
        target: &Target,
        upload: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<(), UploadError> {
        let all = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut attempts = self.sending.attempts(&target.place);
        loop {
            let request = client.sdk.complete_multipart_upload().bucket(&self.settings.bucket).key(&target.key);
            let Err(error) = request.upload_id(upload).multipart_upload(all.clone()).send().await else {
                return Ok(());
            };
            // An answer that was lost may have been a good one; what lies there is compared in any case.
            let gone = StoreRefusal::of(&error).is_some_and(|refusal| refusal.code == NO_SUCH_UPLOAD);
            if gone && attempts.any_failed() {
                return Ok(());
            }
            attempts.after(self.failed(client, &error, &target.place, &target.key, 0)).await?;
        }
    }
}

fn refused(target: &Target, said: &str) -> Failure {
    UploadError::Refused { place: target.place.clone(), said: said.to_owned() }.into()
}

/// An upload in parts that is neither complete nor removed. Dropped, it is removed beside.
struct OpenUpload(Option<Removal>);

// === impl OpenUpload ===

impl OpenUpload {
    /// The store's name of it.
    fn is(&mut self, upload: &str) {
        if let Some(removal) = &mut self.0 {
            removal.upload = Some(upload.to_owned());
        }
    }

    /// It became an object.
    fn done(mut self) {
        self.0 = None;
    }

    /// Removes it, and waits for that as long as the caller may wait.
    async fn close(mut self, sending: &Sending) {
        let Some(removing) = self.begin_removal() else { return };
        let limits = &sending.limits;
        let cancelled = async {
            sending.cancel.cancelled().await;
            sleep(limits.abort_after_cancel).await;
        };
        // Beyond that it goes on beside.
        tokio::select! {
            _ = removing => {}
            () = cancelled => {}
            () = sleep(limits.abort) => {}
        }
    }

    fn begin_removal(&mut self) -> Option<JoinHandle<()>> {
        let (removal, runtime) = (self.0.take()?, Handle::try_current().ok()?);
        Some(runtime.spawn(removal.run()))
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        self.begin_removal();
    }
}

/// All that is needed to remove the parts of an upload, whatever became of the delivery.
struct Removal {
    settings: BucketSettings,
    network: Network,
    limits: UploadLimits,
    key: String,
    place: String,
    /// Nothing while the store's name of it is not known.
    upload: Option<String>,
}

// === impl Removal ===

impl Removal {
    fn of(bucket: &Bucket<'_>, target: &Target) -> Self {
        Self {
            settings: bucket.settings.clone(),
            network: bucket.sending.network.clone(),
            limits: UploadLimits { deadline: bucket.sending.limits.abort, ..bucket.sending.limits.clone() },
            key: target.key.clone(),
            place: target.place.clone(),
            upload: None,
        }
    }

    async fn run(self) {
        let Ok(sending) = Sending::new(&self.network, &self.limits, &CancellationToken::new()) else { return };
        let Ok(bucket) = Bucket::new(&sending, &self.settings, "").await else { return };
        match &self.upload {
            Some(upload) => {
                if let Err(error) = self.remove(&bucket, upload).await {
                    tracing::warn!("parts of an upload may be left in the store, and cost money there: {error}");
                }
            }
            None => self.remove_leftovers(&bucket).await,
        }
    }

    async fn remove(&self, bucket: &Bucket<'_>, upload: &str) -> Result<(), UploadError> {
        let mut attempts = bucket.sending.attempts(&self.place);
        loop {
            let request = bucket.questions.sdk.abort_multipart_upload().bucket(&self.settings.bucket).key(&self.key);
            let Err(error) = request.upload_id(upload).send().await else { return Ok(()) };
            if StoreRefusal::of(&error).is_some_and(|refusal| refusal.status == 404) {
                return Ok(());
            }
            attempts.after(bucket.failed(&bucket.questions, &error, &self.place, &self.key, 0)).await?;
        }
    }

    /// Removes what uploads of the same key left. Not all stores tell, and not all keys may ask.
    async fn remove_leftovers(&self, bucket: &Bucket<'_>) {
        let request = bucket.questions.sdk.list_multipart_uploads().bucket(&self.settings.bucket).prefix(&self.key);
        let Ok(answer) = request.send().await else {
            bucket.questions.take_failure();
            return;
        };
        for left in answer.uploads().iter().filter(|left| left.key() == Some(&self.key)) {
            let Some(upload) = left.upload_id() else { continue };
            if let Err(error) = self.remove(bucket, upload).await {
                tracing::info!("parts of an earlier upload stay in the store: {error}");
            }
        }
    }
}
