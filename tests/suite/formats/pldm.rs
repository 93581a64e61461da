//! PLDM packages of all four revisions; the reader of another project is the judge of those it knows.

use std::fs::File;
use std::path::{Path, PathBuf};

use carena::firmware::formats::metadata::{Reboot, Rule};

use super::{bash, noise, one, read, refusal};

/// A package built field by field, as DSP0267 lays it out.
pub struct Builder {
    revision: u8,
    descriptors: Vec<(u16, Vec<u8>)>,
    images: Vec<Vec<u8>>,
}

impl Builder {
    pub fn new(revision: u8) -> Self {
        let pci = |kind, id: u16| (kind, id.to_le_bytes().to_vec());
        Self {
            revision,
            descriptors: vec![pci(0, 0x15b3), pci(0x100, 0x101d), pci(0x101, 0x1590), pci(0x102, 0x0421)],
            images: vec![noise(3000, 21), noise(500, 22)],
        }
    }

    fn identifier(&self) -> [u8; 16] {
        let text = [
            "f018878ccb7d49439800a02f059aca02",
            "1244d2648d7d4718a030fc8a56587d5a",
            "3119ce2fe80a4a99af6d46f8b121f6bf",
            "7b291c996db64208801b02026e463c78",
        ][usize::from(self.revision) - 1];
        std::array::from_fn(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
    }

    fn record(&self, downstream: bool) -> Vec<u8> {
        let mut rest = vec![self.descriptors.len() as u8];
        rest.extend(u32::from(downstream).to_le_bytes());
        let version = if downstream { "1.0" } else { "22.41.1000" };
        rest.extend([1, version.len() as u8, 4, 0]);
        if self.revision >= 4 && !downstream {
            rest.extend(3_u32.to_le_bytes());
        }
        // Both images for the device, the second for what is behind it.
        rest.push(if downstream { 0b10 } else { 0b11 });
        rest.extend(version.as_bytes());
        if downstream {
            rest.extend(7_u32.to_le_bytes());
        }
        for (kind, value) in &self.descriptors {
            rest.extend(kind.to_le_bytes());
            rest.extend((value.len() as u16).to_le_bytes());
            rest.extend(value);
        }
        rest.extend(b"data");
        if self.revision >= 4 && !downstream {
            rest.extend(b"rim");
        }
        let mut record = ((rest.len() + 2) as u16).to_le_bytes().to_vec();
        record.extend(rest);
        record
    }

    /// The header without what only its size tells; then the same again with it.
    pub fn bytes(&self) -> Vec<u8> {
        let build = |size: u16| {
            let mut bytes = self.identifier().to_vec();
            bytes.push(self.revision);
            bytes.extend(size.to_le_bytes());
            // 2026-03-10 06:09:16, UTC.
            bytes.extend([0, 0, 0, 0, 0, 16, 9, 6, 10, 3, 0xea, 0x07, 0]);
            bytes.extend([8, 0, 1, 7]);
            bytes.extend(b"PKG-1.2");
            bytes.push(1);
            bytes.extend(self.record(false));
            if self.revision >= 2 {
                bytes.push(1);
                bytes.extend(self.record(true));
            }
            bytes.extend((self.images.len() as u16).to_le_bytes());
            let mut offset = u32::from(size);
            for (index, image) in self.images.iter().enumerate() {
                bytes.extend([0x0a, 0, index as u8 + 1, 0]);
                bytes.extend(0x0102_0304_u32.to_le_bytes());
                // The comparison stamp counts for the first; activation by AC power cycle for the second.
                bytes.extend(if index == 0 { [2, 0, 8, 0] } else { [0, 0, 32, 0] });
                bytes.extend(offset.to_le_bytes());
                bytes.extend((image.len() as u32).to_le_bytes());
                let version: Vec<u8> =
                    format!("v{index}").encode_utf16().flat_map(u16::to_le_bytes).collect();
                // The other reader knows no UTF-16.
                if index == 0 || self.revision == 1 {
                    bytes.extend([1, 2]);
                    bytes.extend(format!("v{index}").as_bytes());
                } else {
                    bytes.extend([4, version.len() as u8]);
                    bytes.extend(version);
                }
                if self.revision >= 3 {
                    bytes.extend(2_u32.to_le_bytes());
                    bytes.extend(b"oo");
                }
                offset += image.len() as u32;
            }
            bytes
        };
        let checksums = if self.revision >= 4 { 8 } else { 4 };
        let size = build(0).len() + checksums;
        let mut bytes = build(size as u16);
        bytes.extend(crc(&bytes).to_le_bytes());
        let payload = self.images.concat();
        if self.revision >= 4 {
            bytes.extend(crc(&payload).to_le_bytes());
        }
        bytes.extend(payload);
        bytes
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

pub fn write(directory: &Path, revision: u8) -> PathBuf {
    let path = directory.join(format!("nic-{revision}.pldm"));
    std::fs::write(&path, Builder::new(revision).bytes()).unwrap();
    path
}

#[test]
fn all_four_revisions_are_read_and_others_read_what_we_accept() {
    let directory = tempfile::tempdir().unwrap();
    for revision in 1..=4 {
        let path = write(directory.path(), revision);
        let package = read(&path).unwrap();
        assert_eq!(package.components.len(), if revision == 1 { 1 } else { 2 });
        let device = &package.components[0];
        assert_eq!(device.version, "22.41.1000");
        assert_eq!(device.released.as_deref(), Some("2026-03-10"));
        assert_eq!(device.hints["package-version"], "PKG-1.2");
        assert_eq!(device.hints["image-0"], "version v0, class 0x000a, comparison stamp 0x01020304");
        let pci = Rule::Pci {
            vendor: 0x15b3,
            device: Some(0x101d),
            subvendor: Some(0x1590),
            subdevice: Some(0x0421),
        };
        assert_eq!(device.targets[0].rule, pci);
        assert_eq!(device.reboot, Some(Reboot::PowerOff));
        assert_eq!(device.payloads, ["image-0-0001", "image-1-0002"]);
        if let Some(behind) = package.components.get(1) {
            assert_eq!((behind.version.as_str(), behind.payloads.len()), ("v1", 1));
            assert_eq!(behind.hints["self-contained-activation-from"], "1.0");
        }
        for (payload, image) in package.payloads.iter().zip(&Builder::new(revision).images) {
            assert_eq!(payload.checked, revision == 4);
            let line = format!(
                "tail -c +{} {} | head -c {} | sha256sum",
                payload.offset.unwrap() + 1,
                path.display(),
                payload.size
            );
            let found = bash(directory.path(), &line);
            assert!(found.starts_with(&carena::digest::Sha256::of(image).to_string()));
        }
        // The other reader knows two revisions, and of the second not its longer downstream records.
        if revision == 1 {
            let theirs = pldm_fw::pkg::Package::parse(File::open(&path).unwrap()).unwrap();
            assert_eq!(theirs.devices.len(), 1);
            assert_eq!(theirs.devices[0].version.to_string(), device.version);
            assert_eq!(theirs.devices[0].components.as_index_vec(), [0, 1]);
            for (component, payload) in theirs.components.iter().zip(&package.payloads) {
                assert_eq!(component.file_offset as u64, payload.offset.unwrap());
                assert_eq!(component.file_size as u64, payload.size);
            }
        }
    }
}

#[test]
fn descriptors_that_are_not_pci_are_kept_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(1);
    builder.descriptors =
        vec![(1, vec![0x0b, 0, 0, 0]), (0x106, b"Model X   ".to_vec()), (0xffff, vec![1, 2, b'a', b'b'])];
    let path = directory.path().join("a.pldm");
    std::fs::write(&path, builder.bytes()).unwrap();
    let (component, _) = one(&path);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let descriptors = vec![
        pair("iana-enterprise", "0b000000"),
        pair("model", "4d6f64656c2058202020"),
        pair("vendor-defined", "01026162"),
    ];
    assert_eq!(component.targets[0].rule, Rule::Pldm { descriptors });
    assert_eq!(component.name, "Model X");
}

#[test]
fn damaged_packages_are_refused_by_us_and_by_others() {
    let directory = tempfile::tempdir().unwrap();
    for revision in 1..=4 {
        let good = Builder::new(revision).bytes();
        let header = usize::from(u16::from_le_bytes([good[17], good[18]]));
        let refuse = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            let path = directory.path().join("bad.pldm");
            std::fs::write(&path, bytes).unwrap();
            if revision == 1 {
                assert!(pldm_fw::pkg::Package::parse(File::open(&path).unwrap()).is_err());
            }
            refusal(&path)
        };
        let flipped = refuse(&|bytes| bytes[40] ^= 1);
        assert!(flipped.contains("the header: CRC-32 is "), "{flipped}");
        let short = refuse(&|bytes| bytes.truncate(header - 1));
        assert!(short.contains("the file ends within the package header"), "{short}");
        if revision == 4 {
            let payload = Builder::new(4).bytes().len() - 1;
            let path = directory.path().join("payload.pldm");
            let mut bytes = good.clone();
            bytes[payload] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert!(refusal(&path).contains("the payload: CRC-32 is "));
        }
    }
    // A good checksum over a header that lies.
    let lie = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Builder::new(1).bytes();
        change(&mut bytes);
        let header = usize::from(u16::from_le_bytes([bytes[17], bytes[18]]));
        let sum = crc(&bytes[..header - 4]).to_le_bytes();
        bytes[header - 4..header].copy_from_slice(&sum);
        let path = directory.path().join("lie.pldm");
        std::fs::write(&path, bytes).unwrap();
        refusal(&path)
    };
    assert!(
        lie(&|bytes| bytes[16] = 2)
            .contains("the header's revision is 2, its identifier is that of revision 1")
    );
    assert!(lie(&|bytes| bytes[32] = 7).contains("the component bitmap has 7 bits"));
    let record = 19 + 13 + 2 + 2 + 7 + 1;
    assert!(lie(&|bytes| bytes[record] = 1).contains("the file ends within a record"));
    let images = Builder::new(1).bytes().len();
    assert!(lie(&|bytes| bytes.truncate(images - 1)).contains("image 1 is at bytes"));
}
