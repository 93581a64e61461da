//! LVFS cabinets: firmware with its AppStream metainfo, checksums and jcat signatures.
//!
//! Metainfo as in the fwupd documentation ("metainfo.xml", "requirements"). Every payload that a release names is
//! hashed against every checksum that is known of it. With certificates given, metainfo and payload must each carry a
//! trusted signature, or the cabinet is refused.

use std::collections::BTreeSet;

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::StrDeserializer;

use super::cab::{Cabinet, Member};
use super::digests::{Algorithm, Digester, Digests};
use super::error::{Fault, FormatError};
use super::jcat::{Jcat, PACKED_BYTES_MAX};
use super::metadata::{
    Format, Metadata, Package, Payload, Requirement, Rule, Signature, SignatureState, Target,
};
use super::pkcs7::Trust;
use super::source::Source;
use super::xml::{self, Element};
use crate::firmware::version::VersionFormat;

const METAINFO_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Metainfo files of one cabinet; composite firmware has a few.
const COMPONENTS_MAX: usize = 64;
const JCATS_MAX: usize = 64;
/// Guids, requirements, checksums of one component.
const ENTRIES_MAX: usize = 1024;
/// What fwupd takes where a release names no file.
const DEFAULT_PAYLOAD: &str = "firmware.bin";

/// Reads the cabinet.
///
/// # Errors
/// When it is malformed, a checksum is wrong, or it is not signed by a certificate that was given.
pub fn read(source: &mut Source<'_>, trust: &Trust) -> Result<Package, FormatError> {
    let mut cabinet = Cabinet::open(source)?;
    let mut package = Package::new(Format::LvfsCab, source.size(), Vec::new());
    let jcats = jcats(source, &mut cabinet)?;
    let mut reader = Reader { source, cabinet, jcats, trust };
    let metainfos: Vec<Member> = reader.ending_in(".metainfo.xml").cloned().collect();
    // One that is not read would be installed with the others all the same, unseen.
    within(reader.source, "the number of metainfo files", metainfos.len(), COMPONENTS_MAX)?;
    if metainfos.is_empty() {
        return Err(reader.source.error(None, Fault::Missing("a .metainfo.xml file".into())));
    }
    for member in metainfos {
        reader.component(&member, &mut package)?;
    }
    Ok(package)
}

fn within(source: &Source<'_>, what: &'static str, found: usize, limit: usize) -> Result<(), FormatError> {
    if found <= limit {
        return Ok(());
    }
    Err(source.error(None, Fault::Limit { what, found: found as u64, limit: limit as u64 }))
}

fn jcats(source: &mut Source<'_>, cabinet: &mut Cabinet) -> Result<Vec<Jcat>, FormatError> {
    let files = cabinet.members.iter().filter(|member| member.name.ends_with(".jcat"));
    let files: Vec<Member> = files.cloned().collect();
    within(source, "the number of jcat files", files.len(), JCATS_MAX)?;
    let mut jcats = Vec::new();
    for member in files {
        let bytes = cabinet.read(source, &member, PACKED_BYTES_MAX)?;
        jcats.push(Jcat::parse(&format!("{}: {}", source.name(), member.name), &bytes)?);
    }
    Ok(jcats)
}

struct Reader<'r, 's> {
    source: &'r mut Source<'s>,
    cabinet: Cabinet,
    jcats: Vec<Jcat>,
    trust: &'r Trust,
}

impl Reader<'_, '_> {
    fn ending_in(&self, end: &'static str) -> impl Iterator<Item = &Member> {
        self.cabinet.members.iter().filter(move |member| member.name.ends_with(end))
    }

    fn component(&mut self, member: &Member, package: &mut Package) -> Result<(), FormatError> {
        let bytes = self.cabinet.read(self.source, member, METAINFO_BYTES_MAX)?;
        let signatures = self.vouch(&member.name, &Digests::of(&bytes))?;
        package.signatures.extend(signatures);
        let place = format!("{}: {}", self.source.name(), member.name);
        let root = xml::parse(&place, &bytes)?;
        let error = |fault| FormatError { file: place.clone(), offset: None, fault };
        if root.name != "component" || root.attribute("type") != Some("firmware") {
            return Err(error(Fault::Malformed("the root is not <component type=\"firmware\">".into())));
        }
        let releases = root.child("releases").into_iter().flat_map(|releases| releases.all("release"));
        let mut named = BTreeSet::new();
        for release in releases {
            let name = payload_name(release);
            let found = self.cabinet.members.iter().find(|member| member.name == name).cloned();
            named.insert(name);
            // Older releases stand there for their notes, without their payloads.
            let Some(payload) = found else { continue };
            let mut metadata = metadata(&root, release).map_err(error)?;
            metadata.payloads.push(payload.name.clone());
            if !package.payloads.iter().any(|known| known.name == payload.name) {
                self.payload(&payload, release, package)?;
            }
            package.components.push(metadata);
            return Ok(());
        }
        let names: Vec<_> = named.into_iter().take(4).collect();
        Err(error(Fault::Missing(if names.is_empty() { "a release".into() } else { names.join(", ") })))
    }

    fn payload(
        &mut self,
        member: &Member,
        release: &Element,
        package: &mut Package,
    ) -> Result<(), FormatError> {
        let mut digester = Digester::new();
        self.cabinet.copy(self.source, member, |piece| digester.update(piece))?;
        let digests = digester.finish();
        let mut payload = Payload { name: member.name.clone(), size: member.size, ..Payload::default() };
        for checksum in checksums(release, &member.name).take(ENTRIES_MAX) {
            let (Some(kind), Some(expected)) = (checksum.attribute("type"), checksum.words()) else {
                continue;
            };
            let Some(algorithm) = Algorithm::named(kind) else { continue };
            digests
                .check(&member.name, algorithm, expected)
                .map_err(|fault| self.source.error(None, fault))?;
            payload.checksums.insert(algorithm.name().into(), expected.to_ascii_lowercase());
            payload.checked = true;
        }
        let signatures = self.vouch(&member.name, &digests)?;
        payload.checked |= self.jcats.iter().any(|jcat| jcat.names(&member.name));
        package.signatures.extend(signatures);
        package.payloads.push(payload);
        Ok(())
    }

    /// Checks what the jcat files say of a file; with certificates given, one signature must be trusted.
    fn vouch(&self, name: &str, digests: &Digests) -> Result<Vec<Signature>, FormatError> {
        let mut signatures = Vec::new();
        for jcat in &self.jcats {
            signatures.extend(
                jcat.check(name, digests, self.trust).map_err(|fault| self.source.error(None, fault))?,
            );
        }
        if self.trust.is_empty()
            || signatures.iter().any(|s| matches!(s.state, SignatureState::Trusted { .. }))
        {
            return Ok(signatures);
        }
        let why =
            signatures.iter().filter(|signature| signature.kind == "pkcs7").map(|signature| match &signature
                .state
            {
                SignatureState::NotTrusted { why } => why.clone(),
                SignatureState::Trusted { .. } => String::new(),
            });
        let why: Vec<_> = why.collect();
        let why = if why.is_empty() { "it has none of kind PKCS#7".into() } else { why.join("; ") };
        Err(self.source.error(None, Fault::Untrusted { what: name.to_owned(), why }))
    }
}

/// `<checksum filename= target="content">`, or the binary artifact's `<filename>`.
fn payload_name(release: &Element) -> String {
    let checksum = release.all("checksum").find(|checksum| checksum.attribute("target") != Some("container"));
    let name = checksum.and_then(|checksum| checksum.attribute("filename")).map(str::to_owned);
    let artifact = || {
        let mut artifacts = release.child("artifacts")?.all("artifact");
        artifacts.find_map(|artifact| artifact.text_of("filename"))
    };
    name.or_else(artifact).unwrap_or_else(|| DEFAULT_PAYLOAD.into())
}

/// Every checksum of the payload, in both places.
fn checksums<'a>(release: &'a Element, name: &'a str) -> impl Iterator<Item = &'a Element> {
    let direct = release.all("checksum").filter(move |checksum| {
        checksum.attribute("target") != Some("container") && checksum.attribute("filename") == Some(name)
    });
    let artifacts = release.child("artifacts").into_iter().flat_map(|artifacts| artifacts.all("artifact"));
    let artifacts = artifacts
        .filter(move |artifact| artifact.child("filename").and_then(Element::words) == Some(name))
        .flat_map(|artifact| artifact.all("checksum"));
    direct.chain(artifacts)
}

fn metadata(root: &Element, release: &Element) -> Result<Metadata, Fault> {
    let must = |value: Option<String>, what: &str| value.ok_or_else(|| Fault::Missing(what.to_owned()));
    let custom = |key: &str| {
        let values = root.child("custom").into_iter().flat_map(|custom| custom.all("value"));
        values.filter(|value| value.attribute("key") == Some(key)).find_map(Element::words)
    };
    let mut metadata = Metadata {
        id: must(root.text_of("id"), "<id>")?,
        name: must(root.text_of("name"), "<name>")?,
        summary: root.text_of("summary"),
        vendor: root.text_of("developer_name").or_else(|| root.child("developer")?.text_of("name")),
        version: must(release.attribute("version").map(str::to_owned), "the release's version")?,
        version_format: custom("LVFS::VersionFormat").and_then(version_format).unwrap_or_default(),
        released: release.attribute("date").or_else(|| release.attribute("timestamp")).map(str::to_owned),
        severity: release.attribute("urgency").map(str::to_owned),
        notes: release.child("description").and_then(Element::prose),
        expected_s: release.attribute("install_duration").and_then(|seconds| seconds.parse().ok()),
        installers: vec!["fwupd".into()],
        ..Metadata::default()
    };
    let guids = root.child("provides").into_iter().flat_map(|provides| provides.all("firmware"));
    let guids =
        guids.filter(|firmware| firmware.attribute("type") == Some("flashed")).filter_map(Element::words);
    let targets = guids.take(ENTRIES_MAX).map(|guid| Rule::FwupdGuid { guid: guid.to_ascii_lowercase() });
    metadata.targets = targets.map(Target::of).collect();
    metadata.requires = requirements(root.child("requires"));
    metadata.conflicts = requirements(root.child("conflicts"));
    for (key, value) in [
        ("protocol", custom("LVFS::UpdateProtocol").map(str::to_owned)),
        ("device-integrity", custom("LVFS::DeviceIntegrity").map(str::to_owned)),
        ("version-format", custom("LVFS::VersionFormat").map(str::to_owned)),
        ("branch", root.text_of("branch")),
        ("license", root.text_of("project_license")),
    ] {
        metadata.hints.extend(value.map(|value| (key.to_owned(), value)));
    }
    Ok(metadata)
}

/// Those names of LVFS that we order by; the others stay as a hint.
fn version_format(name: &str) -> Option<VersionFormat> {
    let name: StrDeserializer<'_, serde::de::value::Error> = name.into_deserializer();
    VersionFormat::deserialize(name).ok()
}

fn requirements(list: Option<&Element>) -> Vec<Requirement> {
    let all = list.into_iter().flat_map(|list| &list.children).take(ENTRIES_MAX);
    all.map(|one| Requirement {
        kind: one.name.clone(),
        subject: one.words().map(str::to_owned),
        compare: one.attribute("compare").map(str::to_owned),
        version: one.attribute("version").map(str::to_owned),
        depth: one.attribute("depth").and_then(|depth| depth.parse().ok()),
    })
    .collect()
}
