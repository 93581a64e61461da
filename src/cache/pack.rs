//! Content into zstd frames, on several threads, in order, with flat memory.
//!
//! One thread reads, shows the content to whoever hashes it, and hands the frames over; the others compress. Two frames a
//! thread are under way. build.rs uses this file too: it imports nothing of ours but the seek table's sizes. A
//! source that fails half-way must never lose the frames before: they are handed over first.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use zstd::zstd_safe::CParameter;

use super::seek_table::{FRAME_BYTES, FRAME_PACKED_BYTES_MAX};

/// Frames that one thread may have at once.
const FRAMES_PER_THREAD: usize = 2;

/// A frame on its way; its buffers are used again.
#[derive(Default)]
struct Job {
    content: Vec<u8>,
    packed: Vec<u8>,
}

struct Worker {
    jobs: SyncSender<Job>,
    done: Receiver<io::Result<Job>>,
}

/// How to pack.
#[derive(Debug, Clone, Copy)]
pub struct Packing {
    /// zstd's level.
    pub level: i32,
    /// Threads that compress, at least one.
    pub threads: usize,
}

impl Packing {
    /// With as many threads as there are processors.
    pub fn at_level(level: i32) -> Self {
        Self { level, threads: std::thread::available_parallelism().map_or(1, Into::into) }
    }
}

/// Packs everything `source` yields: `content` sees it in order, `frame` gets each packed frame with the length of its
/// content.
///
/// # Errors
/// Those of the source and of the two; frames read before an error of the source are handed over first.
pub fn pack(
    mut source: impl Read,
    packing: Packing,
    mut content: impl FnMut(&[u8]),
    mut frame: impl FnMut(&[u8], usize) -> io::Result<()>,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let threads = packing.threads.max(1);
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let (jobs, to_do) = sync_channel(FRAMES_PER_THREAD);
            let (finished, done) = sync_channel(FRAMES_PER_THREAD);
            let work = move || compress(packing.level, &to_do, &finished);
            std::thread::Builder::new().name("pack".into()).spawn_scoped(scope, work)?;
            workers.push(Worker { jobs, done });
        }
        let mut waiting = VecDeque::with_capacity(threads * FRAMES_PER_THREAD);
        let mut spare = Vec::new();
        let mut turns = workers.iter().cycle();
        let mut finish = |worker: &Worker| -> io::Result<Job> {
            let job = worker.done.recv().map_err(|_| gone())??;
            frame(&job.packed, job.content.len())?;
            Ok(job)
        };
        let mut failed = None;
        while failed.is_none() {
            let mut job: Job = spare.pop().unwrap_or_default();
            failed = fill(&mut source, &mut job.content).err();
            if failed.is_some() || job.content.is_empty() {
                break;
            }
            content(&job.content);
            if waiting.len() == threads * FRAMES_PER_THREAD
                && let Some(worker) = waiting.pop_front()
            {
                spare.push(finish(worker)?);
            }
            let Some(worker) = turns.next() else { break };
            worker.jobs.send(job).map_err(|_| gone())?;
            waiting.push_back(worker);
        }
        for worker in waiting {
            finish(worker)?;
        }
        failed.map_or(Ok(()), Err)
    })
}

fn gone() -> io::Error {
    io::Error::other("a compressing thread has ended")
}

/// Fills up to a frame's content; less only at the end of the source.
pub fn fill(source: &mut impl Read, content: &mut Vec<u8>) -> io::Result<()> {
    content.clear();
    content.reserve_exact(FRAME_BYTES);
    source.by_ref().take(FRAME_BYTES as u64).read_to_end(content).map(|_| ())
}

fn compress(level: i32, jobs: &Receiver<Job>, done: &SyncSender<io::Result<Job>>) {
    let mut compressor = match compressor(level) {
        Ok(compressor) => compressor,
        Err(error) => {
            let _ = done.send(Err(error));
            return;
        }
    };
    while let Ok(mut job) = jobs.recv() {
        job.packed.clear();
        job.packed.reserve_exact(FRAME_PACKED_BYTES_MAX);
        let packed = compressor.compress_to_buffer(&job.content, &mut job.packed).map(|_| job);
        if done.send(packed).is_err() {
            return;
        }
    }
}

/// Each frame with its size and a checksum of its content: what is damaged is found where it is unpacked.
fn compressor(level: i32) -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    Ok(compressor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_order_and_none_is_lost_when_the_source_fails() {
        let content: Vec<u8> = (0..7 * FRAME_BYTES + 5).map(|i| (i / 3 % 251) as u8).collect();
        for threads in [1, 3] {
            let failing = content.chain(Failing);
            let (mut seen, mut packed) = (Vec::new(), Vec::new());
            let result = pack(
                failing,
                Packing { level: 1, threads },
                |bytes| seen.extend_from_slice(bytes),
                |frame, length| {
                    packed.extend_from_slice(frame);
                    assert_eq!(length, FRAME_BYTES);
                    Ok(())
                },
            );
            assert_eq!(result.unwrap_err().to_string(), "pulled out");
            assert_eq!(seen.len(), 7 * FRAME_BYTES);
            assert!(zstd::stream::decode_all(&packed[..]).unwrap() == seen);
        }
    }

    struct Failing;

    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("pulled out"))
        }
    }

    #[test]
    fn what_does_not_shrink_costs_next_to_nothing() {
        let mut content = vec![0; FRAME_BYTES];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut content).unwrap();
        let mut length = 0;
        let packing = Packing { level: 3, threads: 1 };
        let count = |frame: &[u8], _| {
            length += frame.len();
            Ok(())
        };
        pack(&content[..], packing, |_| (), count).unwrap();
        assert!((FRAME_BYTES..FRAME_BYTES + 64).contains(&length), "{length}");
    }
}
