//! What the operator has set up.

use std::{path::PathBuf, time::Duration};

use super::key::Key;
use crate::net::Network;

/// What the operator has set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of queue and history; it is this process's alone.
    pub folder: PathBuf,
    /// Name of this machine in answers.
    pub worker: String,
    /// What whoever asks must know.
    pub key: Option<Key>,
    /// Which servers a webhook may lead to.
    pub network: Network,
    /// Webhooks may lead to servers without encryption.
    pub plain_http: bool,
    /// How long a job may run that says nothing of it.
    pub execution: Option<Duration>,
    /// How much of everything.
    pub limits: Limits,
}

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Jobs that wait.
    pub queue: usize,
    /// Bytes of the inputs of jobs that wait, all together.
    pub queue_bytes: u64,
    /// Jobs that are over and remembered.
    pub history: usize,
    /// So long they are remembered.
    pub keep: Duration,
    /// Connections at the same time; further ones wait.
    pub connections: usize,
    /// Requests that wait for a job at the same time; further ones are answered at once.
    pub waiting: usize,
    /// A request's head must be here after so long; so long a connection may also be idle.
    pub head: Duration,
    /// And its body after so long.
    pub body: Duration,
    /// Pauses between the attempts to tell a webhook.
    pub webhook_pauses: Vec<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 1000,
            queue_bytes: 1 << 30,
            history: 1000,
            keep: Duration::from_secs(30 * 24 * 3600),
            connections: 256,
            waiting: 128,
            head: Duration::from_secs(10),
            body: Duration::from_secs(60),
            // As RunPod was seen to do.
            webhook_pauses: vec![Duration::from_secs(5), Duration::from_secs(20)],
        }
    }
}
