//! Unpacked frames, shared by those who want the same one: 64 nodes that fetch one payload unpack it about once.
//!
//! A frame lives as long as somebody sends it; a few of the last ones are kept for those who come just behind. So memory
//! is bounded by the clients that read, a mebibyte each at most, and some more.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::body::Bytes;
use tokio::sync::OnceCell;

use super::object::{Object, Unpacker};
use crate::digest::Sha256;

/// Frames kept though nobody sends them: 8 MiB.
const RECENT_MAX: usize = 8;

/// What unpacks is kept for the next frame: making one costs as much as a small frame.
const UNPACKERS_MAX: usize = 2;

type Frame = Arc<OnceCell<Bytes>>;

/// The frames of many payloads.
#[derive(Default)]
pub struct Frames(Mutex<Shared>);

#[derive(Default)]
struct Shared {
    live: HashMap<(Sha256, usize), Weak<OnceCell<Bytes>>>,
    recent: VecDeque<Frame>,
    unpackers: Vec<Unpacker>,
}

impl Frames {
    /// One frame's content, unpacked by a blocking thread unless somebody has it.
    ///
    /// # Errors
    /// As [`Unpacker::frame`].
    pub async fn get(
        self: &Arc<Self>,
        object: &Arc<Object>,
        name: Sha256,
        index: usize,
    ) -> io::Result<Bytes> {
        let frame = self.enter((name, index));
        let unpack = || async {
            let (object, frames) = (object.clone(), self.clone());
            let unpacked = tokio::task::spawn_blocking(move || frames.unpack(&object, index)).await;
            unpacked.map_err(io::Error::other)?.map(Bytes::from)
        };
        frame.get_or_try_init(unpack).await.cloned()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpack(&self, object: &Object, index: usize) -> io::Result<Vec<u8>> {
        let idle = self.shared().unpackers.pop();
        let mut unpacker = idle.map_or_else(Unpacker::new, Ok)?;
        let mut content = Vec::new();
        unpacker.frame(object, index, &mut content)?;
        let mut shared = self.shared();
        if shared.unpackers.len() < UNPACKERS_MAX {
            shared.unpackers.push(unpacker);
        }
        Ok(content)
    }

    fn enter(&self, key: (Sha256, usize)) -> Frame {
        let mut shared = self.shared();
        if let Some(frame) = shared.live.get(&key).and_then(Weak::upgrade) {
            return frame;
        }
        shared.live.retain(|_, frame| frame.strong_count() > 0);
        let frame = Frame::default();
        shared.live.insert(key, Arc::downgrade(&frame));
        shared.recent.push_back(frame.clone());
        if shared.recent.len() > RECENT_MAX {
            shared.recent.pop_front();
        }
        frame
    }
}
