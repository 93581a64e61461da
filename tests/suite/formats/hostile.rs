//! Every parser against its own good files, cut and changed in thousands of ways: an error or a result, never a panic, and
//! within bounds of time and memory. Deterministic, so that what fails fails again.

use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use carena::firmware::formats::{Trust, read_from};
use nix::sys::resource::{Resource, setrlimit};

use super::{lvfs, packages, pldm, vendors};

/// Address space of the whole test process, its threads and samples included.
const MEMORY_MAX: u64 = 2 << 30;
/// For the mutations of one sample, in a debug build on a loaded machine; a parser that loops takes for ever.
const SAMPLE_TIME: Duration = Duration::from_secs(240);
const CUTS: usize = 300;
const CHANGES: usize = 2000;

/// A generator of numbers, xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Cuts at even distances, then changes of one to four places: a bit, a byte, an extreme number, a copied piece.
/// Half of the changes go to the `head`, where the structures are.
fn torture(name: &str, good: &[u8], head: Range<usize>) {
    let begun = Instant::now();
    let trust = Trust::read(&[lvfs::LVFS_CA]).unwrap();
    let none = Trust::default();
    let (mut read, mut refused) = (0, 0);
    let mut give = |bytes: &[u8], trust: &Trust| match read_from(name, &mut Cursor::new(bytes), trust) {
        Ok(_) => read += 1,
        Err(error) => {
            assert!(!carena::error::explain(&error).is_empty());
            refused += 1;
        }
    };
    give(good, &none);
    for cut in 0..CUTS.min(good.len()) {
        give(&good[..good.len() * cut / CUTS.min(good.len())], &none);
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ good.len() as u64);
    for round in 0..CHANGES {
        let mut bytes = good.to_vec();
        for _ in 0..1 + round % 4 {
            let at = if round % 2 == 0 {
                random.below(bytes.len())
            } else {
                head.start + random.below(head.len())
            };
            let at = at.min(bytes.len() - 1);
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.below(256) as u8,
                2 => {
                    let value =
                        [0_u32, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff][random.below(5)].to_le_bytes();
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].copy_from_slice(&value[..end - at]);
                }
                _ => {
                    let (from, length) = (random.below(bytes.len()), random.below(64));
                    let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        give(&bytes, if round % 2 == 0 { &none } else { &trust });
        assert!(begun.elapsed() < SAMPLE_TIME, "{name}: {round} changes took {:?}", begun.elapsed());
    }
    assert!(read > 0 && refused > CHANGES / 20, "{name}: {read} read, {refused} refused");
}

fn bound_memory() {
    // Only where a test has a process of its own.
    if std::env::var_os("NEXTEST").is_some() {
        setrlimit(Resource::RLIMIT_AS, MEMORY_MAX, MEMORY_MAX).unwrap();
    }
}

fn torture_made(make: impl Fn(&Path) -> PathBuf) {
    torture_within(make, 0..1024);
}

fn torture_within(make: impl Fn(&Path) -> PathBuf, head: Range<usize>) {
    let directory = tempfile::tempdir().unwrap();
    let path = make(directory.path());
    let bytes = std::fs::read(&path).unwrap();
    bound_memory();
    torture(&path.file_name().unwrap().to_string_lossy(), &bytes, head);
}

#[test]
fn hostile_cabinets() {
    let bytes = std::fs::read(Path::new(lvfs::SHIPPED).join("fakedevice124.cab")).unwrap();
    bound_memory();
    torture("shipped.cab", &bytes, 0..1024);
}

#[test]
fn hostile_compressed_cabinets() {
    torture_made(|dir| lvfs::Maker::new(dir).payload(&super::noise(34_000, 1)).packed().make("packed.cab"));
}

#[test]
fn hostile_fwpkg() {
    torture_made(vendors::fwpkg);
}

#[test]
fn hostile_scexe() {
    torture_made(vendors::scexe);
}

#[test]
fn hostile_dup() {
    torture_made(vendors::dup);
}

#[test]
fn hostile_rpm() {
    torture_made(|dir| packages::rpm(dir, "w9.gzdio"));
}

#[test]
fn hostile_debs() {
    for packing in ["xz", "zstd", "gzip"] {
        torture_made(|dir| packages::deb(dir, packing));
    }
}

/// Changed headers with a good checksum again, so that what is behind it is reached.
#[test]
fn hostile_pldm() {
    for revision in [1, 4] {
        torture_made(|dir| pldm::write(dir, revision));
    }
    let good = pldm::Builder::new(2).bytes();
    let header = usize::from(u16::from_le_bytes([good[17], good[18]]));
    let mut random = Random(77);
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random.below(3) {
            bytes[19 + random.below(header - 23)] = random.below(256) as u8;
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[..header - 4]);
        bytes[header - 4..header].copy_from_slice(&crc.sum().to_le_bytes());
        let _ = read_from("a.pldm", &mut Cursor::new(&bytes), &Trust::default());
    }
}

/// Of an image, the volume descriptors and directories.
#[test]
fn hostile_images() {
    let make = |dir: &Path| {
        let line = "mkdir -p t/manifest t/packages; echo x > t/packages/a.rpm; \
            echo '{\"Components\":[{\"Package\":{\"Name\":\"a\",\"Files\":[{\"Name\":\"a.rpm\"}]}}]}' > t/manifest/metadata.json; \
            genisoimage -quiet -R -J -o t.iso t";
        super::bash(dir, line);
        dir.join("t.iso")
    };
    torture_within(make, 0x8000..0xf000);
}
