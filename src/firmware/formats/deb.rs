//! Debian packages: an ar archive with `debian-binary`, `control.tar` and `data.tar` (deb(5)); only the control file
//! is unpacked.

use std::io::Read;

use flate2::read::GzDecoder;

use super::error::{Fault, FormatError};
use super::metadata::{Format, Metadata, Package, Payload, Requirement, Rule, Target};
use super::source::{Limited, Source, read_bounded};
use super::{tar, xz};
use crate::firmware::version::VersionFormat;

/// What a package begins with.
pub const SIGNATURE: &[u8] = b"!<arch>\ndebian-binary";

const ARCHIVE_MAGIC_BYTES: u64 = 8;
const MEMBER_HEADER_BYTES: u64 = 60;
/// deb(5) knows three; some tools add a signature.
const MEMBERS_MAX: usize = 16;
const CONTROL_PACKED_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Unpacked control archive: maintainer scripts and checksums of all files.
const CONTROL_BYTES_MAX: u64 = 32 * 1024 * 1024;
const CONTROL_FILE_BYTES_MAX: u64 = 1024 * 1024;
const ENTRIES_MAX: usize = 4096;
/// zstd's --ultra -22 goes to 128 MiB, which is as far as any decoder goes by default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A member of the ar archive.
struct Member {
    name: String,
    offset: u64,
    size: u64,
}

/// Reads the package.
///
/// # Errors
/// When it is malformed, or its control archive is packed in a way that is not read here.
pub fn read(source: &mut Source<'_>) -> Result<Package, FormatError> {
    let members = members(source)?;
    let control = members.iter().find(|member| member.name.starts_with("control.tar"));
    let control = control.ok_or_else(|| source.error(None, Fault::Missing("control.tar".into())))?;
    let data = members.iter().find(|member| member.name.starts_with("data.tar"));
    let data = data.ok_or_else(|| source.error(None, Fault::Missing("data.tar".into())))?;
    let text = control_file(source, control)?;
    let place = format!("{}: {}: control", source.name(), control.name);
    let error = |fault| FormatError { file: place.clone(), offset: None, fault };
    let fields = fields(&text).map_err(error)?;
    let get = |name: &str| {
        let found = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    let must = |name: &str| get(name).ok_or_else(|| error(Fault::Missing(format!("the field {name}"))));
    let description = get("Description").unwrap_or_default();
    let (title, rest) = description.split_once('\n').unwrap_or((&description, ""));
    let id = must("Package")?;
    let mut component = Metadata {
        name: if title.is_empty() { id.clone() } else { title.to_owned() },
        summary: Some(rest.to_owned()).filter(|text| !text.is_empty()),
        vendor: get("Maintainer"),
        version: must("Version")?,
        version_format: VersionFormat::Deb,
        targets: vec![Target::of(Rule::Package { package: id.clone() })],
        requires: ["Pre-Depends", "Depends"]
            .iter()
            .filter_map(|f| get(f))
            .flat_map(|f| relations(&f))
            .collect(),
        conflicts: ["Conflicts", "Breaks"]
            .iter()
            .filter_map(|f| get(f))
            .flat_map(|f| relations(&f))
            .collect(),
        os: vec!["linux".into()],
        arch: Some(must("Architecture")?),
        installers: vec!["dpkg".into()],
        payloads: vec![data.name.clone()],
        id,
        ..Metadata::default()
    };
    for key in ["Section", "Priority", "Homepage", "Replaces", "Provides", "Installed-Size"] {
        component.hints.extend(get(key).map(|value| (key.to_ascii_lowercase(), value)));
    }
    let payload =
        Payload { name: data.name.clone(), size: data.size, offset: Some(data.offset), ..Payload::default() };
    Ok(Package { payloads: vec![payload], ..Package::new(Format::Deb, source.size(), vec![component]) })
}

fn members(source: &mut Source<'_>) -> Result<Vec<Member>, FormatError> {
    let mut members: Vec<Member> = Vec::new();
    let mut at = ARCHIVE_MAGIC_BYTES;
    while at < source.size() {
        if members.len() == MEMBERS_MAX {
            let (found, limit) = (MEMBERS_MAX as u64 + 1, MEMBERS_MAX as u64);
            return Err(source.error(at, Fault::Limit { what: "the number of members", found, limit }));
        }
        let header = source.bytes(at, MEMBER_HEADER_BYTES as usize, "a member's header")?;
        let field = |from: usize, to: usize| {
            let bytes = header.get(from..to).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim_end().to_owned()
        };
        let size = field(48, 58).parse::<u64>().ok().filter(|_| header.ends_with(b"`\n"));
        let size =
            size.ok_or_else(|| source.error(at, Fault::Malformed("this is no member's header".into())))?;
        let offset = at + MEMBER_HEADER_BYTES;
        if offset.checked_add(size).is_none_or(|end| end > source.size()) {
            return Err(source.error(at, Fault::Truncated("a member")));
        }
        members.push(Member { name: field(0, 16).trim_end_matches('/').to_owned(), offset, size });
        at = offset + size + size % 2;
    }
    let version = members.first().filter(|member| member.name == "debian-binary" && member.size <= 64);
    let version = version.map(|member| (member.offset, member.size as usize));
    let (offset, size) =
        version.ok_or_else(|| source.error(ARCHIVE_MAGIC_BYTES, Fault::Missing("debian-binary".into())))?;
    let version = source.bytes(offset, size, "the format's version")?;
    if !version.starts_with(b"2.") {
        let version = String::from_utf8_lossy(&version).trim().to_owned();
        return Err(source.error(offset, Fault::Unsupported(format!("package format {version}"))));
    }
    Ok(members)
}

/// The text of `./control`.
fn control_file(source: &mut Source<'_>, member: &Member) -> Result<String, FormatError> {
    let place = format!("{}: {}", source.name(), member.name);
    let error = |fault| FormatError { file: place.clone(), offset: None, fault };
    if member.size > CONTROL_PACKED_BYTES_MAX {
        let (what, found, limit) = ("the size of the control archive", member.size, CONTROL_PACKED_BYTES_MAX);
        return Err(error(Fault::Limit { what, found, limit }));
    }
    let packed = source.bytes(member.offset, member.size as usize, "the control archive")?;
    let unpacked;
    let reader: Box<dyn Read + '_> = match member.name.strip_prefix("control.tar").unwrap_or_default() {
        "" => Box::new(packed.as_slice()),
        ".gz" => Box::new(GzDecoder::new(packed.as_slice())),
        ".xz" => {
            unpacked = xz::unpack(&packed, CONTROL_BYTES_MAX).map_err(error)?;
            Box::new(unpacked.as_slice())
        }
        ".zst" => {
            let reading = |source| error(Fault::Read { what: "the control archive", source });
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed.as_slice()).map_err(reading)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(reading)?;
            Box::new(decoder)
        }
        other => return Err(error(Fault::Unsupported(format!("a control archive packed as \"{other}\"")))),
    };
    let mut control = None;
    tar::walk(Limited::new(reader, CONTROL_BYTES_MAX), |member, content| {
        if member.name == "control" {
            control = Some(read_bounded(content, CONTROL_FILE_BYTES_MAX, "the size of the control file")?);
        }
        Ok(())
    })
    .map_err(error)?;
    let control = control.ok_or_else(|| error(Fault::Missing("the control file".into())))?;
    String::from_utf8(control).map_err(|_| error(Fault::Malformed("the control file is not UTF-8".into())))
}

/// deb-control(5): one paragraph; a line that begins with a blank continues the field.
fn fields(text: &str) -> Result<Vec<(String, String)>, Fault> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().take_while(|line| !line.trim().is_empty()) {
        if let Some(more) = line.strip_prefix([' ', '\t']) {
            let Some((_, value)) = fields.last_mut() else {
                return Err(Fault::Malformed("it begins with a continued line".into()));
            };
            value.push('\n');
            value.push_str(if more.trim() == "." { "" } else { more.trim_end() });
            continue;
        }
        let (key, value) = line
            .split_once(':')
            .ok_or_else(|| Fault::Malformed(format!("a line without a colon: {line}")))?;
        fields.push((key.trim().to_owned(), value.trim().to_owned()));
        let (found, limit) = (fields.len() as u64, ENTRIES_MAX as u64);
        if found > limit {
            return Err(Fault::Limit { what: "the number of fields", found, limit });
        }
    }
    Ok(fields)
}

/// "a (>= 1), b | c": an alternative is kept as it is written.
fn relations(field: &str) -> Vec<Requirement> {
    let all = field.split(',').map(str::trim).filter(|one| !one.is_empty()).take(ENTRIES_MAX);
    all.map(|one| {
        let (name, rest) = one.split_once('(').unwrap_or((one, ""));
        let rest = rest.trim_end_matches(')').trim();
        let operators = [("<<", "lt"), ("<=", "le"), (">=", "ge"), (">>", "gt"), ("=", "eq")];
        let found = operators
            .iter()
            .find_map(|(sign, word)| rest.strip_prefix(sign).map(|rest| (*word, rest.trim())));
        match found.filter(|_| !one.contains('|')) {
            Some((compare, version)) => Requirement {
                kind: "package".into(),
                subject: Some(name.trim().to_owned()),
                compare: Some(compare.into()),
                version: Some(version.to_owned()),
                depth: None,
            },
            None => Requirement {
                kind: "package".into(),
                subject: Some(one.to_owned()),
                ..Requirement::default()
            },
        }
    })
    .collect()
}
