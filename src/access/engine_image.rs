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
    /// The command, reading its standard input.
    pub fn command(self) -> &'static str {
        match self {
            Self::Zstd => "zstd -dc",
            Self::Gzip => "gzip -dc",
            Self::Plain => "cat",
        }
    }
}

/// The engine's program.
pub struct EngineImage {
    plain: Vec<u8>,
    gzip: OnceLock<Vec<u8>>,
}

impl EngineImage {
    /// The one in this binary.
    pub fn embedded() -> &'static Self {
        static IMAGE: OnceLock<EngineImage> = OnceLock::new();
        // The bytes are this binary's own, and a test unpacks them: an empty image is refused by the node's check.
        IMAGE.get_or_init(|| Self {
            plain: zstd::stream::decode_all(PACKED).unwrap_or_default(),
            gzip: OnceLock::new(),
        })
    }

    /// Its size on the node.
    pub fn unpacked_bytes(&self) -> u64 {
        self.plain.len() as u64
    }

    /// The bytes for `unpacker`.
    pub fn packed(&'static self, unpacker: Unpacker) -> &'static [u8] {
        match unpacker {
            Unpacker::Zstd => PACKED,
            Unpacker::Plain => &self.plain,
            Unpacker::Gzip => self.gzip.get_or_init(|| {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                // Writing into memory does not fail.
                let _ = gzip.write_all(&self.plain);
                gzip.finish().unwrap_or_default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_engine_is_a_program_within_its_limits() {
        let image = EngineImage::embedded();
        assert!(image.plain.starts_with(b"\x7fELF"));
        assert!(
            image.unpacked_bytes() <= 2_883_584,
            "{} bytes on the node, 2.75 MiB allowed",
            image.unpacked_bytes()
        );
        assert!(PACKED.len() <= 1_153_433, "{} bytes on the wire, 1.1 MiB allowed", PACKED.len());
    }
}
