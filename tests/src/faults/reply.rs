//! What a server answers, and what goes wrong with it.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    time::sleep,
};

use super::Seen;

/// What a server makes of `Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranges {
    /// It answers 206, and heeds `If-Range`; 416 where nothing is left.
    Supported,
    /// It answers 206 and heeds no `If-Range`.
    Unconditional,
    /// It answers 200 with everything.
    Ignored,
    /// It answers 206 with a part that was not asked for.
    Wrong,
    /// It answers 416.
    Refused,
}

/// An answer, and what goes wrong with it.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    etag: Option<String>,
    ranges: Ranges,
    length: Length,
    delay: Duration,
    drip: Option<(usize, Duration)>,
    cut: Option<usize>,
    reset: bool,
    raw: Option<Vec<u8>>,
    endless: bool,
}

#[derive(Debug, Clone, Copy)]
enum Length {
    Right,
    Off(i64),
    Chunked,
    Absent,
}

// === impl Reply ===

impl Reply {
    /// A file, as a good server sends it.
    pub fn file(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            etag: None,
            ranges: Ranges::Supported,
            length: Length::Right,
            delay: Duration::ZERO,
            drip: None,
            cut: None,
            reset: false,
            raw: None,
            endless: false,
        }
    }

    /// A refusal with a text.
    pub fn refusal(status: u16, body: &str) -> Self {
        Self { status, ..Self::file(body) }
    }

    /// A redirect.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::status(status).header("location", location)
    }

    /// These bytes and nothing else, HTTP or not.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { raw: Some(bytes.into()), ..Self::status(200) }
    }

    /// Headers that never end.
    pub fn endless_headers() -> Self {
        Self { endless: true, ..Self::status(200) }
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With an entity tag, quotes included.
    pub fn etag(mut self, tag: &str) -> Self {
        self.etag = Some(tag.to_owned());
        self
    }

    /// With another idea of ranges.
    pub fn ranges(self, ranges: Ranges) -> Self {
        Self { ranges, ..self }
    }

    /// With a `Content-Length` that is off by so much.
    pub fn length_off_by(self, bytes: i64) -> Self {
        Self { length: Length::Off(bytes), ..self }
    }

    /// In chunks, without a length.
    pub fn chunked(self) -> Self {
        Self { length: Length::Chunked, ..self }
    }

    /// Without any word on its length; the body ends with the connection.
    pub fn without_length(self) -> Self {
        Self { length: Length::Absent, ..self }
    }

    /// After a pause.
    pub fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// With the body in pieces of so many bytes, a pause after each.
    pub fn dripping(self, bytes: usize, pause: Duration) -> Self {
        Self { drip: Some((bytes, pause)), ..self }
    }

    /// With an end after so many bytes of the body.
    pub fn cut_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }

    /// As [`Reply::cut_after`], with a reset of the connection (not behind TLS).
    pub fn reset_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), reset: true, ..self }
    }

    pub(super) fn resets(&self) -> bool {
        self.reset
    }

    pub(super) async fn send(&self, seen: &Seen, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        sleep(self.delay).await;
        if let Some(raw) = &self.raw {
            stream.write_all(raw).await?;
            return stream.shutdown().await;
        }
        let (status, range, body) = self.part(seen);
        stream.write_all(self.head(status, range, body.len()).as_bytes()).await?;
        if self.endless {
            loop {
                stream.write_all(b"x-more: and more and more and more\r\n").await?;
            }
        }
        stream.write_all(b"\r\n").await?;
        let cut = self.cut.map_or(body.len(), |cut| cut.min(body.len()));
        let (piece, pause) = self.drip.unwrap_or((body.len().max(1), Duration::ZERO));
        for piece in body[..cut].chunks(piece) {
            self.piece(piece, stream).await?;
            stream.flush().await?;
            sleep(pause).await;
        }
        if cut == body.len() && matches!(self.length, Length::Chunked) {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        stream.flush().await?;
        if self.reset { Ok(()) } else { stream.shutdown().await }
    }

    async fn piece(&self, piece: &[u8], stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if !matches!(self.length, Length::Chunked) {
            return stream.write_all(piece).await;
        }
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        stream.write_all(piece).await?;
        stream.write_all(b"\r\n").await
    }

    /// Status, `Content-Range` and body, as the request and this server's idea of ranges want them.
    fn part(&self, seen: &Seen) -> (u16, Option<String>, &[u8]) {
        let whole = (self.status, None, &self.body[..]);
        let Some(start) = seen.range_start().filter(|_| self.status == 200) else { return whole };
        let total = self.body.len();
        let same = seen.header("if-range").is_none_or(|tag| Some(tag) == self.etag.as_deref());
        match self.ranges {
            Ranges::Ignored => whole,
            Ranges::Supported if !same => whole,
            Ranges::Refused => (416, Some(format!("bytes */{total}")), &[]),
            _ if start >= total => (416, Some(format!("bytes */{total}")), &[]),
            Ranges::Wrong => (206, Some(format!("bytes 0-{}/{total}", total - 1)), &self.body[..]),
            _ => (206, Some(format!("bytes {start}-{}/{total}", total - 1)), &self.body[start..]),
        }
    }

    fn head(&self, status: u16, range: Option<String>, length: usize) -> String {
        let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\n");
        let mut header = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        match self.length {
            Length::Right => header("content-length", &length.to_string()),
            Length::Off(bytes) => header("content-length", &(length as i64 + bytes).to_string()),
            Length::Chunked => header("transfer-encoding", "chunked"),
            Length::Absent => {}
        }
        range.iter().for_each(|range| header("content-range", range));
        self.etag.iter().for_each(|tag| header("etag", tag));
        self.headers.iter().for_each(|(name, value)| header(name, value));
        head
    }
}
