//! A payload that comes as zstd frames, unpacked as it comes, at the byte where a lost connection stopped.
//!
//! What was received and what was unpacked of it stay together in here, so a transfer goes on with the rest of the packed
//! bytes, if the box still has the same. It must never vouch for anything: what comes out goes into the [`Partial`], whose
//! digest judges.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::payload::{Partial, failure};
use crate::wire::message::{Failure, FailureKind};

/// The box packs in frames of a mebibyte; more memory than that takes no one here.
const WINDOW_LOG_MAX: u32 = 20;

/// Bytes unpacked at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// A transfer of packed bytes, as far as it has come.
pub struct Unpacking {
    context: DCtx<'static>,
    unpacked: Vec<u8>,
    /// The packed bytes' entity tag: another one is another packing.
    pub tag: String,
    /// Packed bytes that were taken in.
    pub received: u64,
}

impl Unpacking {
    /// Nothing has come yet.
    ///
    /// # Errors
    /// [`Failure`] for want of memory.
    pub fn begin(tag: String) -> Result<Self, Failure> {
        let node = |what: &str| failure(FailureKind::Node, format!("unpacking: {what}"));
        let mut context = DCtx::try_create().ok_or_else(|| node("out of memory"))?;
        let bounded = context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX));
        bounded.map_err(|code| node(get_error_name(code)))?;
        Ok(Self { context, unpacked: Vec::with_capacity(CHUNK_BYTES), tag, received: 0 })
    }

    /// Takes the next packed bytes in, and their content into `partial`, which takes no more than was announced.
    ///
    /// # Errors
    /// [`Failure`] when they are no zstd, or the content cannot be written.
    pub fn write(&mut self, packed: &[u8], partial: &mut Partial) -> Result<(), Failure> {
        let mut input = InBuffer::around(packed);
        while !partial.is_complete() {
            self.unpacked.clear();
            let mut output = OutBuffer::around(&mut self.unpacked);
            self.context.decompress_stream(&mut output, &mut input).map_err(|code| {
                let why = get_error_name(code);
                failure(FailureKind::Corrupt, format!("the payload is corrupt: it does not unpack: {why}"))
            })?;
            partial.write(&self.unpacked)?;
            // An output that is full may have more behind it.
            if input.pos() == packed.len() && self.unpacked.len() < self.unpacked.capacity() {
                break;
            }
        }
        self.received += packed.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;

    #[test]
    fn frames_cut_anywhere_come_out_as_they_were() {
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        let packed: Vec<u8> =
            content.chunks(1 << 20).flat_map(|frame| zstd::bulk::compress(frame, 3).unwrap()).collect();
        for piece in [1, 1000, packed.len()] {
            let directory = tempfile::tempdir().unwrap();
            let mut partial =
                Partial::take_up(None, directory.path(), Sha256::of(&content), content.len() as u64).unwrap();
            let mut unpacking = Unpacking::begin(String::new()).unwrap();
            for piece in packed.chunks(piece) {
                unpacking.write(piece, &mut partial).unwrap();
            }
            assert!(partial.is_complete());
            assert_eq!(unpacking.received, packed.len() as u64);
            assert!(partial.finish().is_ok());
        }
    }

    #[test]
    fn what_is_no_zstd_or_needs_more_memory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut partial = Partial::take_up(None, directory.path(), Sha256::of(b""), 64 << 20).unwrap();
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        std::io::Write::write_all(&mut encoder, &[7; 1000]).unwrap();
        for wrong in [b"no zstd at all".to_vec(), encoder.finish().unwrap()] {
            let refused = Unpacking::begin(String::new()).unwrap().write(&wrong, &mut partial).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Corrupt, "{}", refused.message);
        }
    }
}
