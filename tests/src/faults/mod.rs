//! An HTTP server that goes wrong as it is told.
//!
//! Each path has a script: one [`Reply`] per request, the last of which is given again for ever. A reply is a status,
//! headers and a body as a good server would send them, and then what goes wrong: it waits, drips, cuts, resets, lies
//! about the length or the range. Everything that was asked is remembered. Connections are real TCP, with or without
//! TLS, and are used once.

mod reply;
mod request;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

pub use reply::{Ranges, Reply};
pub use request::Seen;

/// A server that goes wrong as it is told, until it is dropped.
pub struct FaultServer {
    address: SocketAddr,
    state: Arc<State>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    scripts: Mutex<HashMap<String, Script>>,
    seen: Mutex<Vec<Seen>>,
}

struct Script {
    replies: Vec<Reply>,
    next: usize,
}

// === impl FaultServer ===

impl FaultServer {
    /// Listens on a free port of this machine.
    pub async fn start() -> io::Result<Self> {
        Self::listen(None).await
    }

    /// The same behind TLS.
    pub async fn start_with_tls(acceptor: TlsAcceptor) -> io::Result<Self> {
        Self::listen(Some(acceptor)).await
    }

    async fn listen(acceptor: Option<TlsAcceptor>) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let serving = state.clone();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, acceptor.clone(), serving.clone()));
            }
        });
        Ok(Self { address, state, listening })
    }

    /// Says what requests for a path are answered with, one after another.
    pub fn on(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies: Vec<Reply> = replies.into_iter().collect();
        assert!(!replies.is_empty(), "a script without replies");
        lock(&self.state.scripts).insert(path.to_owned(), Script { replies, next: 0 });
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The `http://` address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Everything that was asked so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        lock(&self.state.seen).iter().filter(|seen| seen.path == path).count()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl State {
    fn reply(&self, path: &str) -> Reply {
        let mut scripts = lock(&self.scripts);
        let Some(script) = scripts.get_mut(path) else { return Reply::status(404) };
        let reply = script.replies[script.next].clone();
        script.next = (script.next + 1).min(script.replies.len() - 1);
        reply
    }
}

async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    // A client that goes away is what many tests are about.
    let _ = match acceptor {
        None => answer(stream, &state, Some).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => answer(stream, &state, |_| None).await,
            Err(_) => Ok(()),
        },
    };
}

/// `plain` gives back the TCP stream below, where there is nothing in between.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    state: &State,
    plain: impl FnOnce(S) -> Option<TcpStream>,
) -> io::Result<()> {
    let Some(seen) = request::read(&mut stream).await? else { return Ok(()) };
    let reply = state.reply(&seen.path);
    lock(&state.seen).push(seen.clone());
    reply.send(&seen, &mut stream).await?;
    match plain(stream) {
        Some(stream) if reply.resets() => reset(stream),
        _ => Ok(()),
    }
}

/// Closes with RST instead of FIN.
fn reset(stream: TcpStream) -> io::Result<()> {
    stream.set_zero_linger()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
