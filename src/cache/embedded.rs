//! The baselines in the binary: what build.rs packed, where the kernel maps it.
//!
//! Nothing is unpacked or even read before it is asked for, so that firmware in the binary costs no start-up time.

/// An embedded baseline's folder and its manifest.
type Manifest = (&'static str, &'static str);
/// A payload's SHA-256, in hexadecimal, and its packed bytes.
type Packed = (&'static str, &'static [u8]);

// `static MANIFESTS: &[Manifest]` and `static OBJECTS: &[Packed]`, each sorted by name.
include!(concat!(env!("OUT_DIR"), "/firmware.rs"));

/// All manifests, each with the name of its folder.
pub fn manifests() -> &'static [Manifest] {
    MANIFESTS
}

/// All payloads.
pub fn objects() -> &'static [Packed] {
    OBJECTS
}

/// The packed bytes of a payload, by its SHA-256.
pub fn object(sha256: crate::digest::Sha256) -> Option<&'static [u8]> {
    let name = sha256.to_string();
    let index = OBJECTS.binary_search_by_key(&name.as_str(), |(name, _)| name).ok()?;
    OBJECTS.get(index).map(|(_, packed)| *packed)
}
