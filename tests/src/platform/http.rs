//! HTTP/1.1 by hand, so that every byte of a request is seen as it came and every answer can go wrong.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Longest head of a request that is read.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Longest body of a request that is read.
const MAX_BODY_BYTES: usize = 64 << 20;

/// A request as it came.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// What is said to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

/// A connection and what was read of it too early.
pub(super) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

// === impl Reply ===

impl Reply {
    pub(super) fn empty(status: u16) -> Self {
        Self { status, content_type: "application/json", body: Vec::new() }
    }

    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { body: body.to_string().into_bytes(), ..Self::empty(status) }
    }

    fn bytes(&self) -> Vec<u8> {
        // A 204 has neither a length nor a type.
        if self.status == 204 {
            return b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
        }
        let head = format!(
            "HTTP/1.1 {} Status\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        [head.as_bytes(), &self.body].concat()
    }
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next request; nothing if the client is gone.
    pub(super) async fn read(&mut self) -> io::Result<Option<Request>> {
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if self.buffer.len() > MAX_HEAD_BYTES || self.more().await? == 0 {
                return Ok(None);
            }
        };
        let head: Vec<u8> = self.buffer.drain(..head).collect();
        let Some(mut request) = parse(&String::from_utf8_lossy(&head)) else { return Ok(None) };
        let header = |name: &str| {
            let mut headers = request.headers.iter();
            headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
        };
        let body = if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            self.chunks().await?
        } else {
            let length = header("content-length").map_or(Some(0), |length| length.parse().ok());
            match length {
                Some(length) => self.exactly(length).await?,
                None => None,
            }
        };
        let Some(body) = body else { return Ok(None) };
        request.body = body;
        Ok(Some(request))
    }

    /// Ends when the client has gone; a request that comes meanwhile is kept. May be dropped at any time.
    pub(super) async fn gone(&mut self) {
        loop {
            match self.more().await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    pub(super) async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        self.stream.write_all(&reply.bytes()).await
    }

    /// An answer that ends in its middle.
    pub(super) async fn send_half(&mut self, reply: &Reply) -> io::Result<()> {
        let bytes = reply.bytes();
        self.stream.write_all(&bytes[..bytes.len() / 2]).await?;
        self.stream.shutdown().await
    }

    /// Closes with RST instead of FIN.
    pub(super) fn reset(self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Option<Vec<u8>>> {
        if length > MAX_BODY_BYTES {
            return Ok(None);
        }
        while self.buffer.len() < length {
            if self.more().await? == 0 {
                return Ok(None);
            }
        }
        Ok(Some(self.buffer.drain(..length).collect()))
    }

    async fn chunks(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(end) = self.buffer.windows(2).position(|bytes| bytes == b"\r\n") {
                    break end;
                }
                if self.buffer.len() > MAX_HEAD_BYTES || self.more().await? == 0 {
                    return Ok(None);
                }
            };
            let line: Vec<u8> = self.buffer.drain(..line + 2).collect();
            let Ok(length) = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16) else { return Ok(None) };
            // Every chunk, the empty last one too, is followed by an end of line.
            if body.len().saturating_add(length) > MAX_BODY_BYTES {
                return Ok(None);
            }
            let Some(chunk) = self.exactly(length + 2).await? else { return Ok(None) };
            body.extend_from_slice(&chunk[..length]);
            if length == 0 {
                return Ok(Some(body));
            }
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    Some(Request { method, target, headers: lines.filter_map(header).collect(), body: Vec::new() })
}
