//! The engine's program as it travels: compressed in the box's binary, unpacked by whatever tool the node has.

use std::io::Write as _;
use std::sync::OnceLock;

/// What build.rs made.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carena-engine.zst"));

/// A program on the node that unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpacker {
    /// `zstd -dc`.
    Zstd,
    /// `gzip -dc`.
    Gzip,
    /// None: the program travels as it is.
    Plain,
}

impl Unpacker {
    /// The command that unpacks its standard input and fails when that is not whole; none where there is none.
    pub fn command(self) -> Option<&'static str> {
        match self {
            Self::Zstd => Some("zstd -dc"),
            Self::Gzip => Some("gzip -dc"),
            Self::Plain => None,
        }
    }
}

/// The engine's program. What is seldom sent is made when it is.
pub struct EngineImage {
    plain: OnceLock<Vec<u8>>,
    gzip: OnceLock<Vec<u8>>,
}

impl EngineImage {
    /// The one in this binary.
    pub fn embedded() -> &'static Self {
        static IMAGE: EngineImage = EngineImage { plain: OnceLock::new(), gzip: OnceLock::new() };
        &IMAGE
    }

    /// Its size on the node.
    pub fn unpacked_bytes(&self) -> u64 {
        // build.rs packs it in one piece, whose head says so; a test compares.
        zstd::zstd_safe::get_frame_content_size(PACKED).ok().flatten().unwrap_or_default()
    }

    /// The bytes for `unpacker`.
    pub fn packed(&'static self, unpacker: Unpacker) -> &'static [u8] {
        match unpacker {
            Unpacker::Zstd => PACKED,
            Unpacker::Plain => self.plain(),
            Unpacker::Gzip => self.gzip.get_or_init(|| {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                // Writing into memory does not fail.
                let _ = gzip.write_all(self.plain());
                gzip.finish().unwrap_or_default()
            }),
        }
    }

    fn plain(&self) -> &[u8] {
        // The bytes are this binary's own, and a test unpacks them: an empty image is refused by the node's check.
        self.plain.get_or_init(|| zstd::stream::decode_all(PACKED).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_engine_is_a_program_within_its_limits() {
        let image = EngineImage::embedded();
        assert!(image.plain().starts_with(b"\x7fELF"));
        assert_eq!(image.unpacked_bytes(), image.plain().len() as u64);
        assert!(
            image.unpacked_bytes() <= 2_883_584,
            "{} bytes on the node, 2.75 MiB allowed",
            image.unpacked_bytes()
        );
        assert!(PACKED.len() <= 1_153_433, "{} bytes on the wire, 1.1 MiB allowed", PACKED.len());
    }
}
