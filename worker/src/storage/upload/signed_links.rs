//! Links to what lies in a bucket: made by signing, without a request, and opened once to see that they work.

use aws_sdk_s3::presigning::PresigningConfig;
use http_body_util::Empty;
use hyper::{Method, Request, body::Bytes, header};
use url::Url;

use super::{
    bucket::{Bucket, IDLE},
    error::{Failure, UploadError},
    refusal::of_link,
};
use crate::{
    net,
    redacted::Redacted,
    storage::{
        error::{Trouble, TroubleKind},
        refusal::MAX_REFUSAL_BYTES,
    },
};

impl Bucket<'_> {
    /// A link that answers a plain GET.
    pub(super) async fn link(&self, name: &str) -> Result<Redacted<Url>, UploadError> {
        let fail = |why: &str| UploadError::Configuration(format!("no link can be made: {why}"));
        let lifetime = PresigningConfig::expires_in(self.settings.link_lifetime);
        let lifetime = lifetime.map_err(|_| fail("its lifetime is too long"))?;
        let target = self.target(name);
        let mut attempts = self.sending.attempts(&target.place);
        // A link ends with the key that signed it.
        while let Err(obstacle) = self.settings.s3.key.renew(&self.sending.line).await {
            attempts.after(self.sending.kept_from(obstacle, &target.place)).await?;
        }
        let request = self.questions.sdk.get_object().bucket(&self.settings.bucket).key(target.key);
        let signed = request.presigned(lifetime).await.map_err(|_| fail("the SDK cannot sign it"))?;
        Ok(Redacted::url(Url::parse(signed.uri()).map_err(|_| fail("it is no URL"))?))
    }

    /// Opens a link as its user will, so that a wrong region, endpoint or key is found now.
    pub(super) async fn opens(&self, link: &Redacted<Url>) -> Result<(), UploadError> {
        let place = link.to_string();
        let mut attempts = self.sending.attempts(&place);
        loop {
            let failure = match self.open_once(link.expose(), &place).await {
                Ok(()) => return Ok(()),
                Err(Failure::Final(UploadError::LinkExpired { place, .. })) => {
                    let said = "it is over already, so this machine's clock is wrong".into();
                    return Err(UploadError::LinkDoesNotOpen { place, said });
                }
                Err(Failure::Final(UploadError::Refused { place, said })) => {
                    return Err(UploadError::LinkDoesNotOpen { place, said });
                }
                Err(failure) => failure,
            };
            attempts.after(failure).await?;
        }
    }

    async fn open_once(&self, link: &Url, place: &str) -> Result<(), Failure> {
        let broken = |_| Trouble::new(TroubleKind::BrokenAnswer, "its address is no HTTP address");
        let request = Request::builder().method(Method::GET).uri(net::target(link));
        let request = request.header(header::USER_AGENT, net::AGENT).header(header::RANGE, "bytes=0-0");
        let request = request.body(Empty::<Bytes>::new()).map_err(broken)?;
        let answer = self.sending.line.exchange(link, request, true).await;
        let (head, mut body) = answer.map_err(|error| self.sending.failure(error, place))?;
        match head.status.as_u16() {
            // 416: an empty file has no first byte.
            200 | 206 | 416 => Ok(()),
            status => {
                let patience = &self.sending.line.patience;
                let begin = patience.within(IDLE, "the error's text", body.begin(MAX_REFUSAL_BYTES)).await;
                let begin = begin.map_err(|error| self.sending.failure(error, place))?;
                Err(of_link(status, &begin, &head.headers, place, link.as_str(), 0))
            }
        }
    }
}
