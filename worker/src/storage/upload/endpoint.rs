//! What an endpoint's address says: where the store is, and often which bucket and which region.
//!
//! RunPod documents `BUCKET_ENDPOINT_URL` with the bucket's name in it, in the host or in the path; other tools want it
//! without. Both are understood.

use url::Url;

use crate::storage::s3_client::Addressing;

/// The path of Supabase's S3 endpoint.
const SUPABASE_PATH: [&str; 3] = ["storage", "v1", "s3"];
/// Hosts of the form `[bucket.]s3.region.domain` or `[bucket.]s3-region.domain`.
const S3_DOMAINS: [&str; 4] = [".amazonaws.com", ".amazonaws.com.cn", ".backblazeb2.com", ".wasabisys.com"];
/// Hosts of the form `[bucket.]region.digitaloceanspaces.com`.
const SPACES: &str = ".digitaloceanspaces.com";
/// Hosts of the form `[bucket.]account[.jurisdiction].r2.cloudflarestorage.com`.
const R2: &str = ".r2.cloudflarestorage.com";
/// Letters of an account's number at R2.
const R2_ACCOUNT_LETTERS: usize = 32;

/// What an endpoint's address says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Its address without the bucket.
    pub(super) base: Url,
    /// The bucket that it names.
    pub(super) bucket: Option<String>,
    pub(super) addressing: Addressing,
    /// The region that it names.
    pub(super) region: Option<String>,
    pub(super) supabase: bool,
}

// === impl Endpoint ===

impl Endpoint {
    /// Reads an address. `named` is the bucket that is set beside it.
    pub(super) fn read(mut url: Url, named: Option<&str>) -> Result<Self, String> {
        if url.query().is_some() {
            return Err("has a '?'; give the address of the store alone".into());
        }
        let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_owned();
        if host.starts_with("s3api-") && host.ends_with(".runpod.io") {
            return Err(
                "is a RunPod network volume, which cannot make links for downloads; use a bucket of another S3 \
                        store (Amazon S3, Cloudflare R2, Backblaze B2, Supabase Storage), or unset it"
                    .into(),
            );
        }
        let (before, region) = host_parts(&host);
        let before = before.or_else(|| Some(named?.to_owned()).filter(|named| host.starts_with(&format!("{named}."))));
        let mut addressing = Addressing::Path;
        let mut bucket = None;
        if let Some(before) = before {
            let rest = host[before.len() + 1..].to_owned();
            url.set_host(Some(&rest)).map_err(|error| format!("is no address without its bucket: {error}"))?;
            (bucket, addressing) = (Some(before), Addressing::Host);
        }
        let segments: Vec<String> = url.path().split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let supabase = segments.len() >= 3 && segments[..3] == SUPABASE_PATH;
        let fixed = if supabase { 3 } else { 0 };
        let last = segments.last().filter(|_| segments.len() > fixed && bucket.is_none());
        let last = last.filter(|last| named.is_none_or(|named| named == last.as_str())).cloned();
        let kept = segments.len() - usize::from(last.is_some());
        url.set_path(&segments[..kept].join("/"));
        let bucket = bucket.or(last);
        if let (Some(found), Some(named)) = (&bucket, named)
            && found != named
        {
            return Err(format!("names the bucket {found:?}, but BUCKET_NAME is {named:?}; set only one of them"));
        }
        Ok(Self { base: url, bucket, addressing, region, supabase })
    }
}

/// The bucket before a known store's own host, and the region in it.
fn host_parts(host: &str) -> (Option<String>, Option<String>) {
    let words = |labels: &[&str]| (!labels.is_empty()).then(|| labels.join("."));
    if let Some(domain) = S3_DOMAINS.iter().find(|domain| host.ends_with(**domain)) {
        let labels: Vec<&str> = host[..host.len() - domain.len()].split('.').collect();
        let Some(at) = labels.iter().rposition(|label| *label == "s3" || label.starts_with("s3-")) else {
            return (None, None);
        };
        let region = match (labels[at].strip_prefix("s3-"), &labels[at + 1..]) {
            (None, []) if domain.starts_with(".amazonaws") => Some("us-east-1"),
            (None, [region]) | (None, ["dualstack", region]) => Some(*region),
            (Some(region), []) if region != "accelerate" => Some(region),
            _ => None,
        };
        return (words(&labels[..at]), region.map(str::to_owned));
    }
    if let Some(before) = host.strip_suffix(SPACES) {
        let labels: Vec<&str> = before.split('.').collect();
        let (region, bucket) = labels.split_last().map_or(("", &[][..]), |(region, bucket)| (*region, bucket));
        return (words(bucket), Some(region.to_owned()));
    }
    if let Some(before) = host.strip_suffix(R2) {
        let labels: Vec<&str> = before.split('.').collect();
        let account = |label: &&str| label.len() == R2_ACCOUNT_LETTERS && label.bytes().all(|b| b.is_ascii_hexdigit());
        let at = labels.iter().position(account).unwrap_or(0);
        return (words(&labels[..at]), Some("auto".into()));
    }
    (None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str, named: Option<&str>) -> Result<(String, Option<String>, bool, Option<String>), String> {
        let read = Endpoint::read(url.parse().unwrap(), named)?;
        let host = read.addressing == Addressing::Host;
        Ok((read.base.to_string(), read.bucket, host, read.region))
    }

    #[test]
    fn a_bucket_may_stand_in_the_host_or_in_the_path() {
        const ACCOUNT: &str = "0123456789abcdef0123456789abcdef";
        let r2 = format!("https://{ACCOUNT}.r2.cloudflarestorage.com/");
        let cases = [
            ("https://b.s3.eu-west-1.amazonaws.com", None, "https://s3.eu-west-1.amazonaws.com/", "eu-west-1", true),
            ("https://s3.eu-west-1.amazonaws.com/b/", None, "https://s3.eu-west-1.amazonaws.com/", "eu-west-1", false),
            ("https://s3-eu-west-1.amazonaws.com/b", None, "https://s3-eu-west-1.amazonaws.com/", "eu-west-1", false),
            ("https://s3.amazonaws.com", Some("b"), "https://s3.amazonaws.com/", "us-east-1", false),
            ("https://b.nyc3.digitaloceanspaces.com", None, "https://nyc3.digitaloceanspaces.com/", "nyc3", true),
            ("https://nyc3.digitaloceanspaces.com", Some("b"), "https://nyc3.digitaloceanspaces.com/", "nyc3", false),
            (
                "https://b.s3.us-west-004.backblazeb2.com",
                None,
                "https://s3.us-west-004.backblazeb2.com/",
                "us-west-004",
                true,
            ),
            (&format!("{r2}b"), None, r2.as_str(), "auto", false),
            (&r2.replace("//", "//b."), Some("b"), r2.as_str(), "auto", true),
            ("http://127.0.0.1:9000/b", None, "http://127.0.0.1:9000/", "", false),
            ("https://b.minio.example:9000/", Some("b"), "https://minio.example:9000/", "", true),
            ("https://h.example/s3", Some("b"), "https://h.example/s3", "", false),
            ("https://h.example/s3/b", Some("b"), "https://h.example/s3", "", false),
            ("https://r.supabase.co/storage/v1/s3", Some("b"), "https://r.supabase.co/storage/v1/s3", "", false),
            ("https://r.supabase.co/storage/v1/s3/b", None, "https://r.supabase.co/storage/v1/s3", "", false),
        ];
        for (url, named, base, region, host) in cases {
            let read = read(url, named).unwrap();
            let bucket = read.1.clone().or(named.map(str::to_owned));
            let region = Some(region.to_owned()).filter(|region| !region.is_empty());
            assert_eq!((read.0.as_str(), bucket.as_deref(), read.2, read.3), (base, Some("b"), host, region), "{url}");
        }
        assert_eq!(read("https://r.supabase.co/storage/v1/s3", None).unwrap().1, None);
        assert!(Endpoint::read("https://r.supabase.co/storage/v1/s3/".parse().unwrap(), None).unwrap().supabase);
    }

    #[test]
    fn what_cannot_be_the_address_of_a_store_is_refused() {
        for (url, named, expected) in [
            ("https://s3api-eu-ro-1.runpod.io/", Some("b"), "RunPod network volume"),
            ("https://s3api-us-ks-2.runpod.io/volume", None, "RunPod network volume"),
            ("https://b.s3.eu-west-1.amazonaws.com", Some("c"), "set only one"),
            ("https://h/?x=1", None, "'?'"),
        ] {
            let error = read(url, named).unwrap_err();
            assert!(error.contains(expected), "{url}: {error}");
        }
    }
}
