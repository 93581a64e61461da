//! A command on the node whose standard streams are a connection: how the box talks to an engine when nothing but SSH
//! leads to the node.
//!
//! No forwarding is asked of the server, and the streams take one session: with `MaxSessions 1` they must have ended
//! before anything else is run. It passes bytes on and understands none of them.

use std::time::Duration;

use russh::ChannelMsg;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::error::AccessError;
use super::exec::Begun;
use super::{Session, script};
use crate::access::driver::{Tunnel, TunnelEnd};

/// Bytes that may wait on either side.
const BUFFER_BYTES: usize = 64 * 1024;

/// The attaching program runs by then.
const BEGIN_MAX: Duration = Duration::from_secs(10);

/// When the box has ended its side, the node's side ends within this, or the channel is closed.
const END_MAX: Duration = Duration::from_secs(3);

impl Session {
    /// Joins the streams of a command with the engine that runs in `directory`.
    ///
    /// # Errors
    /// [`AccessError`] when the command does not begin; that no engine runs there is seen by the stream's end.
    pub async fn attach(&mut self, directory: &str) -> Result<Tunnel, AccessError> {
        let body = script::attach(directory);
        // The one session a server may allow (`MaxSessions 1`) is the tunnel's now.
        self.end_shell().await;
        let (begun, first) =
            tokio::time::timeout(BEGIN_MAX, self.begin_stream(&body)).await.map_err(|_| {
                let what = "joining the engine over SSH";
                AccessError::ScriptTimedOut { what, seconds: BEGIN_MAX.as_secs() }
            })??;
        let (stream, ours) = tokio::io::duplex(BUFFER_BYTES);
        let end = TunnelEnd::of(tokio::spawn(pump(begun, first, ours)));
        Ok(Tunnel { stream: Box::new(stream), end })
    }
}

async fn pump(begun: Begun, first: Vec<u8>, stream: DuplexStream) -> Option<u32> {
    let Begun { mut reader, writer, .. } = begun;
    let (mut from_box, mut to_box) = tokio::io::split(stream);
    let up = async {
        let mut towards = writer.make_writer();
        let mut buffer = vec![0; BUFFER_BYTES];
        // An end and an error are the same here: the box has let the stream go, or the session is gone.
        while let Ok(n @ 1..) = from_box.read(&mut buffer).await {
            if towards.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                break;
            }
        }
        let _ = writer.eof().await;
    };
    let mut box_listens = to_box.write_all(&first).await.is_ok();
    let down = async {
        let mut code = None;
        while let Some(message) = reader.wait().await {
            match message {
                ChannelMsg::Data { data } if box_listens => {
                    box_listens = to_box.write_all(&data).await.is_ok()
                }
                ChannelMsg::Eof => {
                    let _ = to_box.shutdown().await;
                }
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                _ => {}
            }
        }
        let _ = to_box.shutdown().await;
        code
    };
    tokio::pin!(up, down);
    let ended = tokio::select! {
        () = &mut up => tokio::time::timeout(END_MAX, &mut down).await.ok(),
        code = &mut down => Some(code),
    };
    if let Some(code) = ended {
        return code;
    }
    // The server frees the session, and ends the command by its closed streams.
    let _ = writer.close().await;
    tokio::time::timeout(END_MAX, &mut down).await.ok().flatten()
}
