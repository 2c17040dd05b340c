//! One request and its answer over a connection of its own, to an address that was checked. There is no proxy, no
//! cookie, no redirect and no second use of a connection here, so there is nothing to switch off.

use std::{
    error::Error,
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body as HttpBody, Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderValue},
    http::response::Parts,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};
use url::{Host, Position, Url};

use super::{
    error::{NetError, Trouble, TroubleKind},
    network::Network,
    patience::Patience,
};

/// Headers of an answer, all together.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Number of headers of an answer.
const MAX_HEADERS: usize = 128;
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 4;
/// After the body, so long is waited for the server to close, or to send what should not come.
const LINGER: Duration = Duration::from_millis(500);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type Io = TokioIo<Box<dyn Stream>>;

/// Makes connections.
pub(crate) struct Dialer {
    pub(crate) network: Network,
    pub(crate) tls: Arc<ClientConfig>,
    /// Resolving a name, and each attempt to connect.
    pub(crate) connect: Duration,
    /// From the request to the end of the answer's headers.
    pub(crate) headers: Duration,
}

/// TLS as the operator wants it: the public authorities, which are built in, and the operator's.
pub(crate) fn tls(network: &Network) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in &network.extra_root_certificates {
        roots.add(certificate.clone()).map_err(|error| format!("a root certificate of the operator's: {error}"))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What a request line says of an address: its path and its query.
pub(crate) fn target(url: &Url) -> &str {
    &url[Position::BeforePath..Position::AfterQuery]
}

// === impl Dialer ===

impl Dialer {
    /// Sends a request to the host of `url` and waits for the head of the answer. `trusted`: the operator chose the
    /// host, so its address is not checked.
    pub(crate) async fn exchange<B>(
        &self,
        url: &Url,
        mut request: Request<B>,
        trusted: bool,
        patience: &Patience,
    ) -> Result<(Parts, Body), NetError>
    where
        B: HttpBody + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let addresses = self.addresses(url, trusted, patience).await?;
        let stream = self.connect(url, &addresses, patience).await?;
        let headers = request.headers_mut();
        let host = url.port().map_or_else(|| host(url), |port| format!("{}:{port}", host(url)));
        headers.insert(HOST, HeaderValue::try_from(host).map_err(broken)?);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD_BYTES);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = Connection(tokio::spawn(connection.without_shutdown()));
        let answer = patience.within(self.headers, "the answer", sender.send_request(request)).await?;
        let (head, incoming) = answer.map_err(|error| trouble(&error))?.into_parts();
        Ok((head, Body { incoming, connection }))
    }

    /// Resolves the host once and checks every address.
    async fn addresses(&self, url: &Url, trusted: bool, patience: &Patience) -> Result<Vec<SocketAddr>, NetError> {
        let port = url.port_or_known_default().unwrap_or(443);
        let found: Vec<IpAddr> = match url.host() {
            Some(Host::Ipv4(address)) => vec![address.into()],
            Some(Host::Ipv6(address)) => vec![address.into()],
            Some(Host::Domain(name)) => {
                let (names, name) = (self.network.names.clone(), name.to_owned());
                let lookup = tokio::task::spawn_blocking(move || names.resolve(&name));
                let found = patience.within(self.connect, "resolving the host's name", lookup).await?;
                let found = found.map_err(io::Error::other).and_then(|found| found);
                found.map_err(|error| unreachable(format!("its name cannot be resolved: {error}")))?
            }
            None => Vec::new(),
        };
        if found.is_empty() {
            return Err(unreachable("its name has no address"));
        }
        let found: Vec<SocketAddr> = found.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let refusal = |address: &SocketAddr| Some((address.ip(), self.network.refusal(*address)?));
        if let Some((address, what)) = found.iter().find_map(refusal).filter(|_| !trusted) {
            return Err(NetError::RefusedAddress { address, what });
        }
        Ok(found)
    }

    async fn connect(
        &self,
        url: &Url,
        addresses: &[SocketAddr],
        patience: &Patience,
    ) -> Result<Box<dyn Stream>, NetError> {
        let tried = &addresses[..addresses.len().min(MAX_ADDRESSES)];
        let share = self.connect / tried.len().max(1) as u32;
        let mut last = unreachable("its name has no address");
        for address in tried {
            match patience.within(share, "connecting", TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.encrypt(url, stream, patience).await,
                Ok(Err(error)) => last = unreachable(format!("no connection: {error}")),
                Err(NetError::Trouble(trouble)) => last = unreachable(trouble.why),
                Err(end) => return Err(end),
            }
        }
        Err(last)
    }

    async fn encrypt(&self, url: &Url, stream: TcpStream, patience: &Patience) -> Result<Box<dyn Stream>, NetError> {
        // Pieces of a request are small, and there is one request; the setting is a matter of speed only.
        let _ = stream.set_nodelay(true);
        if url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let name = match url.host() {
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).map_err(broken)?,
            Some(Host::Ipv4(address)) => ServerName::from(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => ServerName::from(IpAddr::from(address)),
            None => return Err(unreachable("it has no host")),
        };
        let handshake = TlsConnector::from(self.tls.clone()).connect(name, stream);
        match patience.within(self.connect, "the TLS handshake", handshake).await? {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(tls_trouble(&error)),
        }
    }
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

fn unreachable(why: impl Into<String>) -> NetError {
    Trouble::new(TroubleKind::Unreachable, why).into()
}

fn broken(error: impl Display) -> NetError {
    Trouble::new(TroubleKind::BrokenAnswer, error.to_string()).into()
}

fn tls_trouble(error: &io::Error) -> NetError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(why)) => NetError::Untrusted(why.to_string()),
        _ => unreachable(format!("no encrypted connection: {error}")),
    }
}

/// What hyper says, without what only helps those who know hyper.
fn trouble(error: &hyper::Error) -> Trouble {
    let mut cause: &dyn Error = error;
    let mut ended = error.is_incomplete_message();
    while let Some(deeper) = cause.source() {
        cause = deeper;
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        ended |= kind == Some(io::ErrorKind::UnexpectedEof);
    }
    if error.is_parse() {
        return Trouble::new(TroubleKind::BrokenAnswer, format!("it is not HTTP: {cause}"));
    }
    if ended {
        return Trouble::new(TroubleKind::ServerFailed, "the connection ended before the answer did");
    }
    Trouble::new(TroubleKind::ServerFailed, format!("the connection broke: {cause}"))
}

// === impl Connection ===

/// The task that moves the bytes; it ends with its owner.
struct Connection(JoinHandle<hyper::Result<http1::Parts<Io>>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Body ===

/// The body of an answer.
pub(crate) struct Body {
    incoming: Incoming,
    connection: Connection,
}

impl Body {
    /// The next piece; nothing at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        while let Some(frame) = self.incoming.frame().await {
            match frame.map_err(|error| trouble(&error))?.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Ok(Some(bytes)),
                // Trailers: nothing we use.
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// At most so many bytes, and whatever came before an error: enough to see why a server refuses.
    pub(crate) async fn begin(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(Some(piece)) = self.next().await {
            bytes.extend_from_slice(&piece[..piece.len().min(most - bytes.len())]);
            if bytes.len() == most {
                break;
            }
        }
        bytes
    }

    /// Once the body is read: whether the server goes on sending. It was asked to close, so bytes that still come mean
    /// that the length it announced is wrong, and the body was cut.
    pub(crate) async fn sends_more(mut self) -> bool {
        let ended = timeout(LINGER, &mut self.connection.0).await;
        let Ok(Ok(ended)) = ended else { return false };
        match ended {
            Ok(mut parts) if parts.read_buf.is_empty() => {
                let mut byte = [0];
                let more = timeout(LINGER, parts.io.inner_mut().read(&mut byte)).await;
                matches!(more, Ok(Ok(1)))
            }
            Ok(_) => true,
            // An error of the connection has a cause; one that only says "unexpected message" has none.
            Err(error) => !error.is_incomplete_message() && !error.is_closed() && error.source().is_none(),
        }
    }

    /// For an SDK, which reads as it likes: at most `most` bytes.
    pub(crate) fn limited(self, most: usize) -> http_body_util::Limited<Self> {
        http_body_util::Limited::new(self, most)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, hyper::Error>>> {
        std::pin::Pin::new(&mut self.incoming).poll_frame(context)
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.incoming.size_hint()
    }
}
