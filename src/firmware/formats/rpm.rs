//! RPM packages: lead, signature and header, nothing installed and no payload unpacked.
//!
//! Our own reader of the header (file format version 3 and 4, as rpm's `docs/manual/format.md` describes it): the crate
//! brings an OpenPGP implementation with it. The header's SHA-256 and the payload's are checked where the package has
//! them; its OpenPGP signature is not, that is the node's package tool's part.

use std::collections::BTreeMap;

use super::digests::{Algorithm, Digester, Digests};
use super::error::{Fault, FormatError};
use super::metadata::{
    Format, Metadata, Package, Payload, Requirement, Rule, Signature, SignatureState, Target,
};
use super::source::{Fields, Source};
use crate::firmware::version::VersionFormat;

/// What a package begins with.
pub const SIGNATURE: &[u8] = &[0xed, 0xab, 0xee, 0xdb];

const LEAD_BYTES: u64 = 96;
const HEADER_MAGIC: &[u8] = &[0x8e, 0xad, 0xe8, 0x01];
const PREAMBLE_BYTES: u64 = 16;
/// rpm's own limits are 64 Ki entries and 256 MiB; firmware packages need a few kilobytes.
const ENTRIES_MAX: u64 = 0xffff;
const STORE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Values of one tag, and dependencies told of.
const VALUES_MAX: usize = 65_536;

/// Tags of the signature.
const SIG_SHA256: u32 = 273;
const SIG_PGP: [u32; 4] = [267, 268, 1002, 1005];
/// Tags of the header, see rpmtag.h.
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const SUMMARY: u32 = 1004;
const DESCRIPTION: u32 = 1005;
const BUILD_TIME: u32 = 1006;
const VENDOR: u32 = 1011;
const LICENSE: u32 = 1014;
const GROUP: u32 = 1016;
const OS: u32 = 1021;
const ARCH: u32 = 1022;
const REQUIRES: [u32; 3] = [1049, 1048, 1050];
const CONFLICTS: [u32; 3] = [1054, 1053, 1055];
const OBSOLETES: [u32; 3] = [1090, 1114, 1115];
const DIRECTORY_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIRECTORY_NAMES: u32 = 1118;
const PAYLOAD_FORMAT: u32 = 1124;
const PAYLOAD_COMPRESSOR: u32 = 1125;
const PAYLOAD_DIGEST: u32 = 5092;
const PAYLOAD_DIGEST_ALGORITHM: u32 = 5093;
/// OpenPGP's number of SHA-256.
const ALGORITHM_SHA256: u32 = 8;

/// Reads the package.
///
/// # Errors
/// When it is malformed, or a digest is wrong.
pub fn read(source: &mut Source<'_>) -> Result<Package, FormatError> {
    let (signature, signature_end) = Header::read(source, LEAD_BYTES)?;
    // The header is aligned to 8 bytes, the signature padded for it.
    let start = signature_end.next_multiple_of(8);
    let (header, payload) = Header::read(source, start)?;
    if let Some(expected) = signature.text(SIG_SHA256) {
        let mut digester = Digester::new();
        copy(source, start, payload - start, &mut digester)?;
        let check = digester.finish().check("the header", Algorithm::Sha256, &expected);
        check.map_err(|fault| source.error(start, fault))?;
    }
    let must = |tag, what: &str| {
        header.text(tag).ok_or_else(|| source.error(start, Fault::Missing(format!("the tag {what}"))))
    };
    let (name, version, release) =
        (must(NAME, "Name")?, must(VERSION, "Version")?, must(RELEASE, "Release")?);
    let epoch = header.number(EPOCH).map_or_else(String::new, |epoch| format!("{epoch}:"));
    let mut component = Metadata {
        id: name.clone(),
        name: header.text(SUMMARY).unwrap_or_else(|| name.clone()),
        summary: header.text(DESCRIPTION).filter(|text| !text.is_empty()),
        vendor: header.text(VENDOR),
        version: format!("{epoch}{version}-{release}"),
        version_format: VersionFormat::Rpm,
        released: header.number(BUILD_TIME).map(|seconds| seconds.to_string()),
        targets: vec![Target::of(Rule::Package { package: name })],
        requires: header.dependencies(REQUIRES),
        conflicts: header.dependencies(CONFLICTS),
        os: header.text(OS).into_iter().collect(),
        arch: header.text(ARCH),
        installers: vec!["rpm".into()],
        ..Metadata::default()
    };
    for (key, tag) in [("license", LICENSE), ("group", GROUP)] {
        component.hints.extend(header.text(tag).map(|text| (key.to_owned(), text)));
    }
    let replaced: Vec<String> =
        header.dependencies(OBSOLETES).into_iter().filter_map(|replaced| replaced.subject).collect();
    if !replaced.is_empty() {
        component.hints.insert("replaces".into(), replaced.join(" "));
    }
    // HPE's firmware packages only unpack; this is what flashes.
    if let Some(setup) = header.files().find(|file| file.ends_with("/hpsetup") || file.ends_with("/.hpsetup"))
    {
        component.hints.insert("hpe-setup".into(), setup);
    }
    let payload = check_payload(source, &header, payload)?;
    component.payloads.push(payload.name.clone());
    let signed = SIG_PGP.iter().any(|tag| signature.entries.contains_key(tag));
    let signatures = signed.then(|| Signature {
        of: "the header".into(),
        kind: "gpg".into(),
        state: SignatureState::NotTrusted { why: "left to the node's package tool".into() },
    });
    let signatures = signatures.into_iter().collect();
    Ok(Package {
        payloads: vec![payload],
        signatures,
        ..Package::new(Format::Rpm, source.size(), vec![component])
    })
}

fn check_payload(source: &mut Source<'_>, header: &Header, offset: u64) -> Result<Payload, FormatError> {
    let format = header.text(PAYLOAD_FORMAT).unwrap_or_else(|| "cpio".into());
    let packing = header.text(PAYLOAD_COMPRESSOR).map_or_else(String::new, |packing| format!(".{packing}"));
    let size = source.size() - offset;
    let mut payload = Payload {
        name: format!("payload.{format}{packing}"),
        size,
        offset: Some(offset),
        ..Payload::default()
    };
    let expected = header.text(PAYLOAD_DIGEST);
    let known = header.number(PAYLOAD_DIGEST_ALGORITHM) == Some(ALGORITHM_SHA256);
    if let Some(expected) = expected.filter(|_| known) {
        let mut digester = Digester::new();
        copy(source, offset, size, &mut digester)?;
        let digests: Digests = digester.finish();
        let check = digests.check(&payload.name, Algorithm::Sha256, &expected);
        check.map_err(|fault| source.error(offset, fault))?;
        payload.checksums.insert(Algorithm::Sha256.name().into(), expected.to_ascii_lowercase());
        payload.checked = true;
    }
    Ok(payload)
}

fn copy(source: &mut Source<'_>, offset: u64, length: u64, into: &mut Digester) -> Result<(), FormatError> {
    let what = "the payload";
    let reader = source.stream(offset, length, what)?;
    let done = into.read(reader).map_err(|error| Fault::Read { what, source: error });
    match done {
        Ok(read) if read == length => Ok(()),
        Ok(_) => Err(source.error(offset, Fault::Truncated(what))),
        Err(fault) => Err(source.error(offset, fault)),
    }
}

/// A header structure: typed values by tag.
struct Header {
    entries: BTreeMap<u32, Entry>,
    store: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u32,
    offset: usize,
    count: usize,
}

const KIND_INT32: u32 = 4;
const KIND_STRING: u32 = 6;
const KIND_STRING_ARRAY: u32 = 8;
const KIND_I18N_STRING: u32 = 9;

impl Header {
    /// Reads the structure at `offset`; also where it ends.
    fn read(source: &mut Source<'_>, offset: u64) -> Result<(Self, u64), FormatError> {
        let name = source.name().to_owned();
        let bytes = source.bytes(offset, PREAMBLE_BYTES as usize, "a header")?;
        let mut fields = Fields::new(&name, &bytes, offset);
        if fields.take(4, "a header's magic")? != HEADER_MAGIC {
            return Err(
                source.error(offset, Fault::Malformed("this is not the beginning of a header".into()))
            );
        }
        fields.take(4, "a reserved field")?;
        let count = u64::from(fields.u32_be("the number of entries")?);
        let length = u64::from(fields.u32_be("the size of the entries' values")?);
        for (what, found, limit) in [
            ("the number of a header's entries", count, ENTRIES_MAX),
            ("the size of a header", length, STORE_BYTES_MAX),
        ] {
            if found > limit {
                return Err(source.error(offset + 8, Fault::Limit { what, found, limit }));
            }
        }
        let index = offset + PREAMBLE_BYTES;
        let bytes = source.bytes(index, count as usize * 16, "a header's entries")?;
        let mut fields = Fields::new(&name, &bytes, index);
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let tag = fields.u32_be("a tag")?;
            let kind = fields.u32_be("a type")?;
            let at = fields.u32_be("an offset")?;
            let values = fields.u32_be("a count")?;
            if u64::from(at) > length || u64::from(values) > length {
                let why = format!("the values of tag {tag} are not within the header");
                return Err(fields.error(Fault::Malformed(why)));
            }
            entries.insert(tag, Entry { kind, offset: at as usize, count: values as usize });
        }
        let store_at = index + count * 16;
        let store = source.bytes(store_at, length as usize, "a header's values")?;
        Ok((Self { entries, store }, store_at + length))
    }

    /// The first string; of translated ones the first is the untranslated.
    fn text(&self, tag: u32) -> Option<String> {
        self.strings(tag).next().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn strings(&self, tag: u32) -> impl Iterator<Item = String> + '_ {
        let kinds = [KIND_STRING, KIND_STRING_ARRAY, KIND_I18N_STRING];
        let entry = self.entries.get(&tag).filter(|entry| kinds.contains(&entry.kind));
        let count = entry.map_or(0, |entry| if entry.kind == KIND_STRING { 1 } else { entry.count });
        let rest = entry.and_then(|entry| self.store.get(entry.offset..)).unwrap_or_default();
        let texts = rest.split(|byte| *byte == 0).take(count.min(VALUES_MAX));
        texts.map(|text| String::from_utf8_lossy(text).into_owned())
    }

    fn number(&self, tag: u32) -> Option<u32> {
        self.numbers(tag).next()
    }

    fn numbers(&self, tag: u32) -> impl Iterator<Item = u32> + '_ {
        let entry = self.entries.get(&tag).filter(|entry| entry.kind == KIND_INT32);
        let rest = entry.and_then(|entry| self.store.get(entry.offset..)).unwrap_or_default();
        let words = rest.chunks_exact(4).take(entry.map_or(0, |entry| entry.count.min(VALUES_MAX)));
        words.map(|word| word.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
    }

    /// Names, flags and versions side by side; what only rpm itself must be able to do is left out.
    fn dependencies(&self, [names, flags, versions]: [u32; 3]) -> Vec<Requirement> {
        let all = self.strings(names).zip(self.numbers(flags)).zip(self.strings(versions));
        let one = |((name, flags), version): ((String, u32), String)| Requirement {
            kind: "package".into(),
            subject: Some(name),
            compare: compare(flags).map(str::to_owned),
            version: Some(version).filter(|version| !version.is_empty()),
            depth: None,
        };
        all.filter(|((name, _), _)| !name.starts_with("rpmlib(")).map(one).collect()
    }

    fn files(&self) -> impl Iterator<Item = String> + '_ {
        let directories: Vec<String> = self.strings(DIRECTORY_NAMES).collect();
        self.numbers(DIRECTORY_INDEXES).zip(self.strings(BASE_NAMES)).filter_map(move |(directory, name)| {
            directories.get(directory as usize).map(|directory| format!("{directory}{name}"))
        })
    }
}

/// RPMSENSE_LESS, _GREATER and _EQUAL.
fn compare(flags: u32) -> Option<&'static str> {
    match flags & 0xe {
        2 => Some("lt"),
        4 => Some("gt"),
        8 => Some("eq"),
        10 => Some("le"),
        12 => Some("ge"),
        _ => None,
    }
}
