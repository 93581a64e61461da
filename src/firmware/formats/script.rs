//! Self-extracting shell scripts: HPE's .scexe and Dell's .BIN. They are read, never run.
//!
//! A script's text is followed by a gzipped tar archive. The archive is walked once, as a stream; its gzip checksum is
//! verified on the way, so that a script with damage in its archive is refused.

use flate2::bufread::GzDecoder;

use super::error::{Fault, FormatError};
use super::metadata::{Format, Metadata, Package, Payload};
use super::source::{Limited, Source, read_bounded};
use super::{dup, smart, tar};

/// What a script begins with.
pub const SIGNATURE: &[u8] = b"#!";

/// The script's text, with Dell's description in it.
const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;
const GZIP: &[u8] = b"\n\x1f\x8b\x08";
/// How an archive unpacks: images are dense, but some are padded; gzip itself could do 1032:1.
const ARCHIVE_RATIO_MAX: u64 = 200;
const ARCHIVE_BYTES_FREE: u64 = 64 * 1024 * 1024;
/// Lines of their own in Dell's scripts, before the description and before the archive.
const DELL_DESCRIPTION: &[u8] = b"#####Startofpackage#####";
const DELL_ARCHIVE: &[u8] = b"#####Startofarchive#####";
const DELL_DESCRIPTION_FILE: &str = "package.xml";

/// Reads the script.
///
/// # Errors
/// When it is neither maker's, malformed, or its archive is damaged.
pub fn read(source: &mut Source<'_>) -> Result<Package, FormatError> {
    let text = source.start(TEXT_BYTES_MAX)?;
    if let Some(archive) = after_line(&text, DELL_ARCHIVE) {
        return dell(source, &text, archive);
    }
    let Some(at) = text.windows(GZIP.len()).position(|window| window == GZIP) else {
        return Err(source.error(None, Fault::Unknown));
    };
    let mut component = None;
    let name = source.name().to_owned();
    let payloads = walk(source, at as u64 + 1, |member, content| {
        if component.is_some() || !member.name.to_ascii_lowercase().ends_with(".xml") {
            return Ok(());
        }
        let bytes = read_bounded(content, smart::XML_BYTES_MAX, "the size of an XML file")?;
        if smart::is_description(&bytes) {
            component = Some(smart::component(&format!("{name}: {}", member.name), &bytes));
        }
        Ok(())
    })?;
    match component {
        Some(component) => Ok(package(source, Format::HpeScexe, component?, payloads)),
        None => Err(source.error(None, Fault::Missing("a CPnnnnnn.xml that describes it".into()))),
    }
}

fn dell(source: &mut Source<'_>, text: &[u8], archive: usize) -> Result<Package, FormatError> {
    let name = source.name().to_owned();
    let begun = after_line(text.get(..archive).unwrap_or_default(), DELL_DESCRIPTION);
    let mut component = None;
    if let Some(begun) = begun {
        let end = archive.saturating_sub(DELL_ARCHIVE.len() + 1);
        let description = text.get(begun..end).unwrap_or_default();
        component = Some(dup::component(&name, begun as u64, description));
    }
    let payloads = walk(source, archive as u64, |member, content| {
        if component.is_none() && member.name == DELL_DESCRIPTION_FILE {
            let bytes = read_bounded(content, TEXT_BYTES_MAX as u64, "the size of package.xml")?;
            component = Some(dup::component(&format!("{name}: {DELL_DESCRIPTION_FILE}"), 0, &bytes));
        }
        Ok(())
    })?;
    match component {
        Some(component) => Ok(package(source, Format::DellDup, component?, payloads)),
        None => Err(source.error(None, Fault::Missing(DELL_DESCRIPTION_FILE.into()))),
    }
}

fn package(source: &Source<'_>, format: Format, mut component: Metadata, payloads: Vec<Payload>) -> Package {
    component.payloads = payloads.iter().map(|payload| payload.name.clone()).collect();
    Package { payloads, ..Package::new(format, source.size(), vec![component]) }
}

/// Where the line after a line that is exactly `line` begins.
fn after_line(text: &[u8], line: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    lines.find_map(|found| {
        at += found.len();
        (found.trim_ascii_end() == line).then_some(at)
    })
}

fn walk(
    source: &mut Source<'_>,
    at: u64,
    mut visit: impl FnMut(&tar::Member, &mut dyn std::io::Read) -> Result<(), Fault>,
) -> Result<Vec<Payload>, FormatError> {
    let what = "the archive";
    let length = source.size().saturating_sub(at);
    let packed = std::io::BufReader::with_capacity(128 * 1024, source.stream(at, length, what)?);
    let mut payloads = Vec::new();
    // What follows the archive, as a signature, is of no interest.
    let limit = length.saturating_mul(ARCHIVE_RATIO_MAX).saturating_add(ARCHIVE_BYTES_FREE);
    let unpacked = Limited::new(GzDecoder::new(packed), limit);
    let walked = tar::walk(unpacked, |member, content| {
        payloads.push(Payload { name: member.name.clone(), size: member.size, ..Payload::default() });
        visit(member, content)
    });
    walked.map_err(|fault| source.error(at, fault))?;
    Ok(payloads)
}
