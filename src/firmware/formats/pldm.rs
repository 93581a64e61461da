//! PLDM firmware update packages, DMTF DSP0267 1.0 to 1.3 (header format revisions 1 to 4).
//!
//! The whole header is at most 64 KiB and read at once; images are only located, and in revision 4 run through the
//! payload's CRC. Every length in a record is checked against the record, every record against the header.

use std::io::Read as _;

use super::error::{Fault, FormatError};
use super::metadata::{Format, Metadata, Package, Payload, Reboot, Rule, Target};
use super::source::{Fields, Source};

/// PackageHeaderIdentifier of each revision, DSP0267 clause 7.1.
const IDENTIFIERS: [[u8; 16]; 4] = [
    [0xf0, 0x18, 0x87, 0x8c, 0xcb, 0x7d, 0x49, 0x43, 0x98, 0x00, 0xa0, 0x2f, 0x05, 0x9a, 0xca, 0x02],
    [0x12, 0x44, 0xd2, 0x64, 0x8d, 0x7d, 0x47, 0x18, 0xa0, 0x30, 0xfc, 0x8a, 0x56, 0x58, 0x7d, 0x5a],
    [0x31, 0x19, 0xce, 0x2f, 0xe8, 0x0a, 0x4a, 0x99, 0xaf, 0x6d, 0x46, 0xf8, 0xb1, 0x21, 0xf6, 0xbf],
    [0x7b, 0x29, 0x1c, 0x99, 0x6d, 0xb6, 0x42, 0x08, 0x80, 0x1b, 0x02, 0x02, 0x6e, 0x46, 0x3c, 0x78],
];

/// Identifier, revision and header size.
const START_BYTES: usize = 19;
/// DescriptorType of DSP0267 table 8.
const DESCRIPTOR_PCI_VENDOR: u16 = 0x0000;
const DESCRIPTOR_PCI_DEVICE: u16 = 0x0100;
const DESCRIPTOR_PCI_SUBVENDOR: u16 = 0x0101;
const DESCRIPTOR_PCI_SUBDEVICE: u16 = 0x0102;
const DESCRIPTOR_VENDOR_DEFINED: u16 = 0xffff;

/// Whether a file begins as such a package.
pub fn is_package(start: &[u8]) -> bool {
    IDENTIFIERS.iter().any(|identifier| start.starts_with(identifier))
}

/// Reads the package.
///
/// # Errors
/// When it is malformed, or a checksum is wrong.
pub fn read(source: &mut Source<'_>) -> Result<Package, FormatError> {
    let name = source.name().to_owned();
    let start = source.bytes(0, START_BYTES, "the package header")?;
    let mut fields = Fields::new(&name, &start, 0);
    let identifier = fields.take(16, "the identifier")?;
    let known = IDENTIFIERS.iter().position(|known| known == identifier);
    let known =
        known.ok_or_else(|| source.error(0, Fault::Malformed("the identifier is not known".into())))?;
    let revision = fields.u8("the header's revision")?;
    if usize::from(revision) != known + 1 {
        let why =
            format!("the header's revision is {revision}, its identifier is that of revision {}", known + 1);
        return Err(source.error(16, Fault::Malformed(why)));
    }
    let size = usize::from(fields.u16("the header's size")?);
    let checksums = if revision >= 4 { 8 } else { 4 };
    let Some(content) = size.checked_sub(START_BYTES + checksums) else {
        return Err(source.error(17, Fault::Truncated("the package header")));
    };
    let header = source.bytes(0, size, "the package header")?;
    let mut tail =
        Fields::new(&name, header.get(size - checksums..).unwrap_or_default(), (size - checksums) as u64);
    let expected = tail.u32("the header's checksum")?;
    check_crc(source, "the header", 0, (size - checksums) as u64, expected)?;
    let mut checked = false;
    if revision >= 4 {
        let expected = tail.u32("the payload's checksum")?;
        check_crc(source, "the payload", size as u64, source.size() - size as u64, expected)?;
        checked = true;
    }
    let body = header.get(START_BYTES..START_BYTES + content).unwrap_or_default();
    let mut fields = Fields::new(&name, body, START_BYTES as u64);
    let parsed = Header::parse(&mut fields, revision)?;
    package(source, parsed, size as u64, checked)
}

fn check_crc(
    source: &mut Source<'_>,
    what: &'static str,
    offset: u64,
    length: u64,
    expected: u32,
) -> Result<(), FormatError> {
    let mut crc = flate2::Crc::new();
    let mut reader = source.stream(offset, length, what)?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => crc.update(chunk.get(..read).unwrap_or_default()),
            Err(error) => return Err(source.error(offset, Fault::Read { what, source: error })),
        }
    }
    if crc.sum() == expected {
        return Ok(());
    }
    let (expected, found) = (format!("{expected:08x}").into(), format!("{:08x}", crc.sum()).into());
    Err(source.error(offset, Fault::Checksum { what: what.into(), algorithm: "CRC-32", expected, found }))
}

fn package(
    source: &Source<'_>,
    header: Header,
    header_size: u64,
    checked: bool,
) -> Result<Package, FormatError> {
    let mut payloads = Vec::new();
    for (index, image) in header.images.iter().enumerate() {
        let (offset, size) = (u64::from(image.offset), u64::from(image.size));
        if offset < header_size || offset + size > source.size() {
            let why = format!("image {index} is at bytes {offset} to {} of {}", offset + size, source.size());
            return Err(source.error(image.at, Fault::Malformed(why)));
        }
        payloads.push(Payload {
            name: format!("image-{index}-{:04x}", image.identifier),
            size,
            offset: Some(offset),
            checked,
            ..Payload::default()
        });
    }
    let mut components = Vec::new();
    for (index, record) in header.records.iter().enumerate() {
        let images = || header.images.iter().enumerate().filter(|(index, _)| record.applies_to(*index));
        let version =
            Some(record.version.clone()).filter(|version| !version.is_empty() && !record.downstream);
        let version = version.or_else(|| images().next().map(|(_, image)| image.version.clone()));
        let kind = if record.downstream { "downstream device" } else { "device" };
        let mut component = Metadata {
            id: format!("record-{index}"),
            name: record.model.clone().unwrap_or_else(|| format!("PLDM {kind} record {index}")),
            version: version.unwrap_or_else(|| header.version.clone()),
            released: header.released.clone(),
            targets: vec![Target::of(record.rule.clone())],
            reboot: images().map(|(_, image)| image.reboot).max(),
            installers: vec!["pldm".into()],
            payloads: images().filter_map(|(index, _)| payloads.get(index)).map(|p| p.name.clone()).collect(),
            ..Metadata::default()
        };
        component.hints.insert("package-version".into(), header.version.clone());
        component.hints.insert("update-options".into(), format!("{:#x}", record.options));
        if record.downstream && !record.version.is_empty() {
            component.hints.insert("self-contained-activation-from".into(), record.version.clone());
        }
        for (index, image) in images() {
            let key = format!("image-{index}");
            let stamp =
                image.stamp.map_or_else(String::new, |stamp| format!(", comparison stamp {stamp:#010x}"));
            component
                .hints
                .insert(key, format!("version {}, class {:#06x}{stamp}", image.version, image.class));
        }
        components.push(component);
    }
    Ok(Package { payloads, ..Package::new(Format::Pldm, source.size(), components) })
}

/// What the header says.
struct Header {
    version: String,
    released: Option<String>,
    records: Vec<Record>,
    images: Vec<Image>,
}

/// A firmware device or downstream device identification record.
struct Record {
    downstream: bool,
    options: u32,
    version: String,
    applicable: Vec<u8>,
    rule: Rule,
    model: Option<String>,
}

/// A component image information record.
struct Image {
    at: u64,
    class: u16,
    identifier: u16,
    stamp: Option<u32>,
    reboot: Reboot,
    offset: u32,
    size: u32,
    version: String,
}

impl Header {
    /// Clauses 7.2 to 7.5: release time, areas of device records, of downstream records, of images.
    fn parse(fields: &mut Fields<'_>, revision: u8) -> Result<Self, FormatError> {
        let released = timestamp(fields.take(13, "the release time")?);
        let bits = fields.u16("the size of the component bitmap")?;
        if bits % 8 != 0 {
            let why = format!("the component bitmap has {bits} bits, not a multiple of 8");
            return Err(fields.error(Fault::Malformed(why)));
        }
        let bitmap = usize::from(bits / 8);
        let version = string_adjacent(fields)?;
        let mut records = Vec::new();
        for _ in 0..fields.u8("the number of device records")? {
            records.push(Record::parse(fields, bitmap, revision, false)?);
        }
        if revision >= 2 {
            for _ in 0..fields.u8("the number of downstream device records")? {
                records.push(Record::parse(fields, bitmap, revision, true)?);
            }
        }
        let count = fields.u16("the number of images")?;
        let images = (0..count).map(|_| Image::parse(fields, revision)).collect::<Result<Vec<_>, _>>()?;
        if fields.left() > 0 {
            let why = format!("{} bytes of the header are left over", fields.left());
            return Err(fields.error(Fault::Malformed(why)));
        }
        if records.is_empty() || images.is_empty() {
            return Err(fields.error(Fault::Missing("a device record or an image".into())));
        }
        Ok(Self { version, released, records, images })
    }
}

impl Record {
    fn parse(
        fields: &mut Fields<'_>,
        bitmap: usize,
        revision: u8,
        downstream: bool,
    ) -> Result<Self, FormatError> {
        let length = usize::from(fields.u16("a record's length")?);
        let rest = length.checked_sub(2).ok_or_else(|| fields.error(Fault::Truncated("a record")))?;
        let mut record = fields.inner(rest, "a record")?;
        let descriptors = record.u8("the number of descriptors")?;
        let options = record.u32("a record's options")?;
        let (kind, size) = (record.u8("a version's type")?, record.u8("a version's length")?);
        let data = usize::from(record.u16("the length of a record's package data")?);
        let has_manifest = revision >= 4 && !downstream;
        let manifest =
            if has_manifest { record.u32("the length of a reference manifest")? as usize } else { 0 };
        let applicable = record.take(bitmap, "a record's bitmap of images")?.to_vec();
        let version = string(&mut record, kind, size)?;
        if downstream && options & 1 != 0 {
            record.u32("a comparison stamp")?;
        }
        let descriptors =
            (0..descriptors).map(|_| Descriptor::parse(&mut record)).collect::<Result<Vec<_>, _>>()?;
        if descriptors.is_empty() {
            return Err(record.error(Fault::Missing("a descriptor of the device".into())));
        }
        record.take(data, "a record's package data")?;
        record.take(manifest, "a record's reference manifest")?;
        if record.left() > 0 {
            return Err(
                record.error(Fault::Malformed(format!("{} bytes of a record are left over", record.left())))
            );
        }
        let model = descriptors.iter().find(|one| [0x0106, 0x0107].contains(&one.kind));
        let model = model.map(|one| String::from_utf8_lossy(&one.value).trim_matches(['\0', ' ']).to_owned());
        Ok(Self { downstream, options, version, applicable, rule: rule(&descriptors), model })
    }

    fn applies_to(&self, image: usize) -> bool {
        self.applicable.get(image / 8).is_some_and(|byte| byte & (1 << (image % 8)) != 0)
    }
}

struct Descriptor {
    kind: u16,
    value: Vec<u8>,
}

impl Descriptor {
    fn parse(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let kind = fields.u16("a descriptor's type")?;
        let length = usize::from(fields.u16("a descriptor's length")?);
        Ok(Self { kind, value: fields.take(length, "a descriptor")?.to_vec() })
    }

    fn u16(&self) -> Option<u16> {
        <[u8; 2]>::try_from(self.value.as_slice()).ok().map(u16::from_le_bytes)
    }

    /// Names of DSP0267 table 8.
    fn name(&self) -> String {
        match self.kind {
            0x0000 => "pci-vendor",
            0x0001 => "iana-enterprise",
            0x0002 => "uuid",
            0x0003 => "pnp-vendor",
            0x0004 => "acpi-vendor",
            0x0005 => "ieee-company",
            0x0006 => "scsi-vendor",
            0x0100 => "pci-device",
            0x0101 => "pci-subsystem-vendor",
            0x0102 => "pci-subsystem",
            0x0103 => "pci-revision",
            0x0104 => "pnp-product",
            0x0105 => "acpi-product",
            0x0106 | 0x0107 => "model",
            0x0108 => "scsi-product",
            0x0109 => "ubm-controller",
            0x010a => "ieee-eui-64",
            0x010b => "pci-revision-range",
            DESCRIPTOR_VENDOR_DEFINED => "vendor-defined",
            other => return format!("type-{other:04x}"),
        }
        .into()
    }
}

/// A PCI function where nothing else is asked for, otherwise the descriptors as they are.
fn rule(descriptors: &[Descriptor]) -> Rule {
    let get = |kind| descriptors.iter().find(|one| one.kind == kind).and_then(Descriptor::u16);
    let pci =
        [DESCRIPTOR_PCI_VENDOR, DESCRIPTOR_PCI_DEVICE, DESCRIPTOR_PCI_SUBVENDOR, DESCRIPTOR_PCI_SUBDEVICE];
    match get(DESCRIPTOR_PCI_VENDOR) {
        Some(vendor) if descriptors.iter().all(|one| pci.contains(&one.kind)) => Rule::Pci {
            vendor,
            device: get(DESCRIPTOR_PCI_DEVICE),
            subvendor: get(DESCRIPTOR_PCI_SUBVENDOR),
            subdevice: get(DESCRIPTOR_PCI_SUBDEVICE),
        },
        _ => Rule::Pldm {
            descriptors: descriptors
                .iter()
                .map(|one| (one.name(), super::digests::hex(&one.value)))
                .collect(),
        },
    }
}

impl Image {
    fn parse(fields: &mut Fields<'_>, revision: u8) -> Result<Self, FormatError> {
        let at = fields.position();
        let class = fields.u16("an image's class")?;
        let identifier = fields.u16("an image's identifier")?;
        let stamp = fields.u32("an image's comparison stamp")?;
        let options = fields.u16("an image's options")?;
        let activation = fields.u16("an image's activation")?;
        let (offset, size) = (fields.u32("an image's offset")?, fields.u32("an image's size")?);
        let version = string_adjacent(fields)?;
        if revision >= 3 {
            let length = fields.u32("the length of an image's opaque data")? as usize;
            fields.take(length, "an image's opaque data")?;
        }
        // Clause 7.5, ComponentOptions bit 1: the comparison stamp counts.
        let stamp = (options & 2 != 0).then_some(stamp);
        Ok(Self { at, class, identifier, stamp, reboot: reboot(activation), offset, size, version })
    }
}

/// RequestedComponentActivationMethod: the mildest of the methods that are named.
fn reboot(methods: u16) -> Reboot {
    match methods {
        // Automatic, self-contained, or nothing asked for.
        _ if methods & 0b11 != 0 || methods == 0 => Reboot::NotNeeded,
        // A reset of the medium, or of the system.
        _ if methods & 0b1100 != 0 => Reboot::Needed,
        _ => Reboot::PowerOff,
    }
}

/// A string with its type and length before it.
fn string_adjacent(fields: &mut Fields<'_>) -> Result<String, FormatError> {
    let (kind, size) = (fields.u8("a version's type")?, fields.u8("a version's length")?);
    string(fields, kind, size)
}

/// DSP0267 table 33: unknown, ASCII, UTF-8, UTF-16 with a mark, little-endian, big-endian.
fn string(fields: &mut Fields<'_>, kind: u8, size: u8) -> Result<String, FormatError> {
    let bytes = fields.take(usize::from(size), "a version")?;
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = bytes.chunks_exact(2).filter_map(|pair| <[u8; 2]>::try_from(pair).ok()).map(unit);
        char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>()
    };
    let text = match (kind, bytes) {
        (0..=2, bytes) => String::from_utf8_lossy(bytes).into_owned(),
        (3, [0xff, 0xfe, rest @ ..]) => utf16(rest, u16::from_le_bytes),
        (3, [0xfe, 0xff, rest @ ..] | rest) | (5, rest) => utf16(rest, u16::from_be_bytes),
        (4, bytes) => utf16(bytes, u16::from_le_bytes),
        _ => return Err(fields.error(Fault::Malformed(format!("a version of string type {kind}")))),
    };
    Ok(text.trim_matches(['\0', ' ']).to_owned())
}

/// DSP0240 timestamp104: the date of it, none when it is not set.
fn timestamp(bytes: &[u8]) -> Option<String> {
    let (day, month) = (*bytes.get(8)?, *bytes.get(9)?);
    let year = u16::from_le_bytes([*bytes.get(10)?, *bytes.get(11)?]);
    let known = (1..=31).contains(&day) && (1..=12).contains(&month);
    known.then(|| format!("{year:04}-{month:02}-{day:02}"))
}
