//! The archive of an adapter, brought into the project's storage and looked at there.

use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, Length};
use http_body_util::Empty;
use hyper::{
    Method,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue},
};
use sha2::{Digest, Sha256};
use url::Url;

use super::Supabase;
use crate::{
    net::{Body, NetError, Patience},
    storage::{MAX_REFUSAL_BYTES, Said, is_temporary},
    telling::{
        archive::Archive,
        limits::TellingLimits,
        request::{Answered, Heard, persist, request, unheard},
    },
};

const BUCKET: &str = "lora-models";
const FOLDER: &str = "adapters";
const UPSERT: HeaderName = HeaderName::from_static("x-upsert");
/// Archives up to this size are read back and compared; of larger ones the length has to do.
const READ_BACK_BYTES: u64 = 256 << 20;
const READ_BYTES: usize = 256 << 10;

// === impl Supabase ===

impl Supabase {
    /// Brings an archive there, and gives its path with its bucket. The error says what to do.
    pub(in crate::telling) async fn store(
        &self,
        archive: &Archive,
        job_id: &str,
        limits: &TellingLimits,
    ) -> Result<String, String> {
        let name = format!("{job_id}.tar.gz");
        let url = self.address(&["storage", "v1", "object", BUCKET, FOLDER, &name]);
        let attempt = |most| self.bring(archive, &url, most);
        persist(limits, limits.archive, limits.time_for(archive.bytes), attempt).await?;
        Ok(format!("{BUCKET}/{FOLDER}/{name}"))
    }

    /// Sends it once, and looks whether it is there.
    async fn bring(&self, archive: &Archive, url: &Url, most: Duration) -> Heard {
        match self.send(archive, url, most).await {
            Ok(Heard::Yes) => self.stands(archive, url, most).await.unwrap_or_else(unheard),
            Ok(heard) => heard,
            Err(error) => unheard(error),
        }
    }

    async fn send(&self, archive: &Archive, url: &Url, most: Duration) -> Result<Heard, NetError> {
        let body = ByteStream::read_from().path(&archive.path).buffer_size(READ_BYTES);
        let Ok(body) = body.length(Length::Exact(archive.bytes)).build().await else {
            return Ok(Heard::Never("its archive is gone from this machine's disk".into()));
        };
        let headers = self.headers().into_iter().chain([
            (CONTENT_TYPE, HeaderValue::from_static("application/gzip")),
            (CONTENT_LENGTH, HeaderValue::from(archive.bytes)),
            // A job may be done twice, and the second time there is an archive already.
            (UPSERT, HeaderValue::from_static("true")),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ]);
        let request = request(Method::POST, url, headers, body.into_inner())?;
        Ok(meaning(&self.line.ask(url, request, true, most).await?, archive.bytes))
    }

    /// Whether what lies there is what was sent.
    async fn stands(&self, archive: &Archive, url: &Url, most: Duration) -> Result<Heard, NetError> {
        let mut url = url.clone();
        // Nothing that was kept of an older one on the way.
        url.query_pairs_mut().append_pair("sha256", &hex::encode(archive.sha256));
        let request = request(Method::GET, &url, self.headers(), Empty::<Bytes>::new())?;
        let (answered, mut body, patience) = self.line.open(&url, request, true, most).await?;
        if answered.status != 200 {
            let body = patience.within(most, "the error's text", body.begin(MAX_REFUSAL_BYTES)).await?;
            return Ok(match meaning(&Answered { body, ..answered }, archive.bytes) {
                Heard::Yes => Heard::NotNow("it was sent, and cannot be read".into()),
                heard => heard,
            });
        }
        let text = |name| answered.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let tag = text(ETAG).map(|tag| tag.trim_matches('"'));
        let same = if length.is_some_and(|length: u64| length != archive.bytes) {
            false
        } else if tag.is_some_and(|tag| tag.eq_ignore_ascii_case(&hex::encode(archive.md5)))
            || archive.bytes > READ_BACK_BYTES
        {
            true
        } else {
            holds(&mut body, archive, &patience, most).await?
        };
        Ok(if same { Heard::Yes } else { Heard::NotNow("the store holds other bytes than were sent".into()) })
    }
}

async fn holds(body: &mut Body, archive: &Archive, patience: &Patience, most: Duration) -> Result<bool, NetError> {
    let (mut bytes, mut hash) = (0, Sha256::new());
    while let Some(piece) = patience.within(most, "reading it back", body.next()).await?? {
        bytes += piece.len() as u64;
        if bytes > archive.bytes {
            return Ok(false);
        }
        hash.update(&piece);
    }
    Ok(bytes == archive.bytes && hash.finalize()[..] == archive.sha256)
}

/// What the store's answer means. Supabase answers every refusal with HTTP 400 and says more in JSON, of which nothing is repeated.
fn meaning(answered: &Answered, bytes: u64) -> Heard {
    let status = answered.status;
    if (200..300).contains(&status) {
        return Heard::Yes;
    }
    let said = Said::read(&answered.body);
    let inner = said.inner(status);
    if is_temporary(inner, &said) {
        return Heard::NotNow(format!("it answered HTTP {status}"));
    }
    let what = if inner == 413 {
        format!(
            "{bytes} bytes are more than it takes; raise the bucket's and the project's limit for a file, or lower the rank"
        )
    } else if inner == 404 {
        "there is no such bucket; make it, a private one".into()
    } else if inner == 415 || said.has(&["invalid_mime_type", "InvalidMimeType"]) {
        "the bucket does not take application/gzip; allow it".into()
    } else if matches!(inner, 401 | 403) || said.has(&["InvalidJWT", "Unauthorized", "AccessDenied"]) {
        "the project does not know the key, or the key may not; check SUPABASE_SERVICE_ROLE_KEY".into()
    } else {
        "the store refuses it".to_owned()
    };
    Heard::Never(format!("HTTP {status}: {what}"))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderMap;

    use super::*;

    #[test]
    fn refusals_say_what_to_do_and_nothing_of_the_servers() {
        let heard =
            |status: u16, body: &str| meaning(&Answered { status, headers: HeaderMap::new(), body: body.into() }, 7);
        assert_eq!(heard(200, r#"{"Key":"lora-models/adapters/j.tar.gz"}"#), Heard::Yes);
        for (status, body) in [(500, ""), (429, ""), (400, r#"{"statusCode":"503","error":"S3CR3T"}"#)] {
            assert!(matches!(heard(status, body), Heard::NotNow(_)), "{body}");
        }
        for (status, body, text) in [
            (400, r#"{"statusCode":"404","error":"Bucket not found","message":"S3CR3T"}"#, "make it"),
            (400, r#"{"statusCode":"403","error":"Unauthorized","message":"S3CR3T"}"#, "SERVICE_ROLE_KEY"),
            (400, r#"{"statusCode":"400","error":"InvalidJWT","message":"S3CR3T"}"#, "SERVICE_ROLE_KEY"),
            (413, r#"{"statusCode":"413","error":"Payload too large"}"#, "7 bytes are more"),
            (400, r#"{"statusCode":"415","error":"invalid_mime_type"}"#, "application/gzip"),
            (302, "", "refuses"),
        ] {
            let Heard::Never(why) = heard(status, body) else { panic!("{body}") };
            assert!(why.contains(text) && !why.contains("S3CR3T"), "{body}: {why}");
        }
    }
}
