//! What a deployment asks of a way to reach nodes, whatever is behind it: SSH today, other kinds of nodes later.
//!
//! A [`Driver`] connects; the [`NodeSession`] it gives looks at the node and changes it; an [`Engine`] is the
//! conversation with the engine once that runs. `deploy` knows these three and no driver by its name, so a test can put
//! a node of its own in their place, and a new kind of node changes nothing there. Whatever changes a node consumes
//! the token of its journalled undo ([`Armed`]): a driver must never offer a change without one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::control::{ControlError, Duplex, EngineClient, Identity};
use super::push;
use super::undo::{Armed, EngineFiles, EngineProcess, EntryId, FirewallRule, Undo};
use crate::wire::id::DeploymentId;
use crate::wire::message::{Notice, Push, Reply, Request, StartConfig, Started};

pub use super::engine_image::EngineImage;
pub use super::ssh::{AccessError, Copied, Firewall, Ground, NoPlace, Opened, Place, Target, Undone};

/// The bytes of a payload from an offset on.
pub type Source<'a> = Box<dyn FnOnce(u64) -> mpsc::Receiver<io::Result<Bytes>> + Send + 'a>;

/// A way to reach nodes, and the engines on them.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Connects to a node and logs in.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn connect(&self, target: &Target) -> Result<Box<dyn NodeSession>, AccessError>;

    /// A connection to an engine's port, if something accepts one there within `bound`.
    ///
    /// # Errors
    /// Those of the network; a timeout when nothing answers.
    async fn reach(&self, engine: SocketAddr, bound: Duration) -> io::Result<Box<dyn Duplex>> {
        let connecting = tokio::time::timeout(bound, TcpStream::connect(engine)).await;
        let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    /// Begins the conversation with the engine that `stream` leads to; `address` is for people.
    ///
    /// # Errors
    /// [`ControlError`].
    async fn join(
        &self,
        stream: Box<dyn Duplex>,
        address: &str,
        identity: &Identity<'_>,
    ) -> Result<Arc<dyn Engine>, ControlError> {
        Ok(Arc::new(EngineClient::join(stream, address, identity).await?.0))
    }
}

/// A connection to a node, logged in.
#[async_trait]
pub trait NodeSession: Send + Sync {
    /// What the node has proved itself with, pinned at the first visit: over SSH its host key's fingerprint.
    fn fingerprint(&self) -> &str;

    /// The node's end of the connection, its zone included.
    fn peer_address(&self) -> SocketAddr;

    /// How long one round trip to the node takes.
    fn round_trip(&self) -> Duration;

    /// Finds out what the node is, and that the rights are to be had. Changes nothing.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn look(&mut self) -> Result<Ground, AccessError>;

    /// Copies the engine into the directory that `armed` takes back.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn copy_engine(
        &mut self,
        armed: Armed<EngineFiles>,
        deployment: &DeploymentId,
        ground: &Ground,
        image: &'static EngineImage,
    ) -> Result<Copied, AccessError>;

    /// Starts the engine that `armed` stops.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn start_engine(
        &mut self,
        armed: Armed<EngineProcess>,
        config: &StartConfig,
    ) -> Result<Started, AccessError>;

    /// Which firewall stands between `from` and the node's ports. Changes nothing.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn firewall(&mut self, from: IpAddr, deployment: &DeploymentId) -> Result<Firewall, AccessError>;

    /// Opens the port that `armed` closes, for the engine in `directory`, which learns of it.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn open_port(&mut self, armed: Armed<FirewallRule>, directory: &str)
    -> Result<Opened, AccessError>;

    /// Takes `undos` back in their order. Each has its own result; one's failure stops none.
    ///
    /// # Errors
    /// [`AccessError`] when the node could not be asked.
    async fn undo(
        &mut self,
        deployment: &DeploymentId,
        undos: &[(EntryId, Undo)],
    ) -> Result<Vec<(EntryId, Result<Undone, String>)>, AccessError>;

    /// A way to the engine in `directory` inside this connection, where its port is of no use.
    ///
    /// # Errors
    /// [`AccessError`] when there is none; that no engine runs there is seen by the stream's end.
    async fn attach(&mut self, directory: &str) -> Result<Tunnel, AccessError>;

    /// Lets go what the connection holds on the node, for the time in which only the engine works.
    async fn rest(&mut self);

    /// What is another one after each boot of the node.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn boot_id(&mut self) -> Result<String, AccessError>;

    /// Tells users who are logged in at a terminal.
    ///
    /// # Errors
    /// [`AccessError`].
    async fn tell_users(&mut self, message: &str) -> Result<(), AccessError>;

    /// Restarts the node, now. The connection may end before the answer: that is no error, the boot id will tell.
    ///
    /// # Errors
    /// [`AccessError`] when the node refuses.
    async fn restart(&mut self) -> Result<(), AccessError>;

    /// Ends the connection.
    async fn close(self: Box<Self>);
}

/// A conversation with an engine. Dropping it ends the connection; the engine then waits for its lease.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Engine`] when the engine says why not.
    async fn request(&self, request: Request) -> Result<Reply, ControlError>;

    /// The same, with what happens on the way. A reader that is too slow misses notices, never the answer.
    ///
    /// # Errors
    /// As [`Self::request`].
    async fn request_with_notices(
        &self,
        request: Request,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Reply, ControlError>;

    /// Pushes a payload; `open` gives its bytes from an offset on, `progress` hears how many are there.
    ///
    /// # Errors
    /// [`ControlError`]; after [`ControlError::Lost`] the same call over another connection goes on at the byte.
    async fn push(
        &self,
        job: Push,
        open: Source<'_>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Reply, ControlError>;

    /// Ends the conversation and waits until its stream is let go.
    async fn close(&self);
}

#[async_trait]
impl Engine for EngineClient {
    async fn request(&self, request: Request) -> Result<Reply, ControlError> {
        Self::request(self, request).await
    }

    async fn request_with_notices(
        &self,
        request: Request,
        notices: mpsc::Sender<Notice>,
    ) -> Result<Reply, ControlError> {
        Self::request_with_notices(self, request, notices).await
    }

    async fn push(
        &self,
        job: Push,
        open: Source<'_>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Reply, ControlError> {
        push::push(self, job, open, progress).await
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}

/// The streams to an engine inside the connection to its node.
pub struct Tunnel {
    /// The bytes, both ways.
    pub stream: Box<dyn Duplex>,
    /// Ends when the connection is free again.
    pub end: TunnelEnd,
}

/// The end of a tunnel.
pub struct TunnelEnd(JoinHandle<Option<u32>>);

impl TunnelEnd {
    /// Of the task that carries the bytes and returns how the command on the node ended.
    pub fn of(task: JoinHandle<Option<u32>>) -> Self {
        Self(task)
    }

    /// Waits until the connection is free again; the stream must have been let go. Tells how the command ended, if it
    /// says so.
    pub async fn ended(self) -> Option<u32> {
        self.0.await.ok().flatten()
    }
}
