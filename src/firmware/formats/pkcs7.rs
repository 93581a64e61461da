//! Detached PKCS#7 signatures (RFC 5652 signed data) and the certificates they are trusted by.
//!
//! Structures by the `cms` crate, chains and signatures by webpki with ring. A signature is trusted when it leads to a
//! certificate the operator gave, as its issuer or as the signer itself. Certificates are judged at the time the
//! signature says it was made: firmware outlives certificates, and a box without a network often has no true clock.

use std::path::Path;
use std::time::{Duration, SystemTime};

use cms::cert::{CertificateChoices, x509};
use cms::content_info::ContentInfo;
use cms::signed_data::{SignedData, SignerIdentifier, SignerInfo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, ring as algorithms};
use x509::certificate::Certificate;
use x509::der::asn1::{ObjectIdentifier, OctetStringRef};
use x509::der::{Decode as _, Encode as _};
use x509::ext::pkix::SubjectKeyIdentifier;

use super::digests::{Algorithm, Digests};

/// RFC 5652 sections 4 to 5 and 11, RFC 8017, RFC 5280 4.2.1.12.
const ID_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const ID_SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SIGNING_TIME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.5");
const ID_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const ID_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");
const ID_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3");
/// DER of id-kp-codeSigning, 1.3.6.1.5.5.7.3.3.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];

const CERTIFICATES_MAX: usize = 16;
const SIGNERS_MAX: usize = 8;

/// The certificates that signatures must lead to.
#[derive(Default)]
pub struct Trust(Vec<CertificateDer<'static>>);

impl Trust {
    /// Reads PEM files, each with one certificate or more.
    ///
    /// # Errors
    /// In words, with the file's name.
    pub fn read(files: &[impl AsRef<Path>]) -> Result<Self, String> {
        let mut all = Vec::new();
        for file in files {
            let file = file.as_ref();
            let refuse = |why: String| format!("{}: {why}", file.display());
            let text = std::fs::read(file).map_err(|error| refuse(error.to_string()))?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            let found = found.map_err(|error| refuse(error.to_string()))?;
            if found.is_empty() {
                return Err(refuse("it has no certificate in PEM form".into()));
            }
            for certificate in &found {
                Certificate::from_der(certificate).map_err(|error| refuse(error.to_string()))?;
            }
            all.extend(found);
        }
        Ok(Self(all))
    }

    /// Whether no certificate was given: then nothing can be trusted or refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Checks a detached signature over the bytes that have these digests; the signer's name when it is trusted.
///
/// # Errors
/// Why not, in words.
pub fn verify(signature: &[u8], of: &Digests, trust: &Trust) -> Result<String, String> {
    let signed = parse(signature).map_err(|error| format!("the signature cannot be read: {error}"))?;
    if signed.encap_content_info.econtent.is_some() {
        return Err("the signature carries its own content".into());
    }
    let mut certificates = Vec::new();
    for choice in signed.certificates.iter().flat_map(|set| set.0.iter()).take(CERTIFICATES_MAX) {
        if let CertificateChoices::Certificate(certificate) = choice {
            certificates.push(certificate.clone());
        }
    }
    if signed.encap_content_info.econtent_type != ID_DATA {
        return Err("the signature is not one of plain data".into());
    }
    certificates.extend(trust.0.iter().filter_map(|given| Certificate::from_der(given).ok()));
    let mut why = "nobody signed".to_owned();
    for signer in signed.signer_infos.0.iter().take(SIGNERS_MAX) {
        match signer_is_trusted(signer, &certificates, of, trust) {
            Ok(name) => return Ok(name),
            Err(refused) => why = refused,
        }
    }
    Err(why)
}

fn parse(signature: &[u8]) -> Result<SignedData, x509::der::Error> {
    let decoded;
    let der = if signature.starts_with(b"-----BEGIN") {
        decoded = x509::der::pem::decode_vec(signature)?.1;
        decoded.as_slice()
    } else {
        signature
    };
    let info = ContentInfo::from_der(der)?;
    if info.content_type != ID_SIGNED_DATA {
        return Err(x509::der::ErrorKind::OidUnknown { oid: info.content_type }.into());
    }
    info.content.decode_as()
}

/// RFC 5652 5.3: the signer is named by issuer and serial number, or by key identifier.
fn is_of(signer: &SignerIdentifier, certificate: &Certificate) -> bool {
    let body = certificate.tbs_certificate();
    match signer {
        SignerIdentifier::IssuerAndSerialNumber(id) => {
            id.issuer == *body.issuer() && id.serial_number == *body.serial_number()
        }
        SignerIdentifier::SubjectKeyIdentifier(id) => body
            .get_extension::<SubjectKeyIdentifier>()
            .is_ok_and(|found| found.is_some_and(|(_, found)| found == *id)),
    }
}

/// Whatever key the certificate has; which of them fits is in the certificate.
fn signature_algorithms(digest: Algorithm) -> Vec<&'static dyn SignatureVerificationAlgorithm> {
    match digest {
        Algorithm::Sha256 => vec![
            algorithms::RSA_PKCS1_2048_8192_SHA256,
            algorithms::ECDSA_P256_SHA256,
            algorithms::ECDSA_P384_SHA256,
        ],
        Algorithm::Sha384 => vec![
            algorithms::RSA_PKCS1_2048_8192_SHA384,
            algorithms::ECDSA_P256_SHA384,
            algorithms::ECDSA_P384_SHA384,
        ],
        // RFC 8419: Ed25519 goes with SHA-512 as the digest.
        Algorithm::Sha512 => vec![algorithms::RSA_PKCS1_2048_8192_SHA512, algorithms::ED25519],
        Algorithm::Sha1 => vec![],
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn signer_is_trusted(
    signer: &SignerInfo,
    certificates: &[Certificate],
    of: &Digests,
    trust: &Trust,
) -> Result<String, String> {
    let certificate = certificates
        .iter()
        .find(|certificate| is_of(&signer.sid, certificate))
        .ok_or("the signer's certificate is neither in the signature nor given")?;
    let name = certificate.tbs_certificate().subject().to_string();
    let refuse = |why: &str| format!("signed by {name}: {why}");
    let algorithm = match signer.digest_alg.oid {
        ID_SHA256 => Algorithm::Sha256,
        ID_SHA384 => Algorithm::Sha384,
        ID_SHA512 => Algorithm::Sha512,
        other => return Err(refuse(&format!("digest algorithm {other} is not accepted"))),
    };
    let attributes = signer.signed_attrs.as_ref().ok_or_else(|| refuse("it has no signed attributes"))?;
    let attribute = |oid| {
        let mut all = attributes.iter().filter(|attribute| attribute.oid == oid);
        all.next().filter(|_| all.next().is_none()).and_then(|attribute| attribute.values.iter().next())
    };
    let content = attribute(CONTENT_TYPE).and_then(|value| value.decode_as::<ObjectIdentifier>().ok());
    if content != Some(ID_DATA) {
        return Err(refuse("it is not a signature of plain data"));
    }
    let digest = attribute(MESSAGE_DIGEST).and_then(|value| value.decode_as::<&OctetStringRef>().ok());
    if digest.map(OctetStringRef::as_bytes) != Some(of.get(algorithm)) {
        return Err(refuse("it signs other bytes"));
    }
    let der = |certificate: &Certificate| certificate.to_der().map(CertificateDer::from);
    let der_error = |error: x509::der::Error| refuse(&error.to_string());
    let encoded = der(certificate).map_err(der_error)?;
    // RFC 5652 5.4: what is signed is the attributes as a SET OF, whatever their tag in the message.
    let message = attributes.to_der().map_err(der_error)?;
    let leaf = EndEntityCert::try_from(&encoded).map_err(|error| refuse(&error.to_string()))?;
    let good = signature_algorithms(algorithm)
        .iter()
        .any(|algorithm| leaf.verify_signature(*algorithm, &message, signer.signature.as_bytes()).is_ok());
    if !good {
        return Err(refuse("the signature is wrong"));
    }
    if trust.0.contains(&encoded) {
        return Ok(name);
    }
    let time = attribute(SIGNING_TIME).and_then(|value| value.decode_as::<x509::time::Time>().ok());
    let time = time.map_or_else(since_1970, |time| time.to_unix_duration());
    let intermediates = certificates.iter().map(der).collect::<Result<Vec<_>, _>>().map_err(der_error)?;
    let anchors: Vec<TrustAnchor<'_>> =
        trust.0.iter().filter_map(|given| webpki::anchor_from_trusted_cert(given).ok()).collect();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &intermediates,
        UnixTime::since_unix_epoch(time),
        KeyUsage::required_if_present(CODE_SIGNING),
        None,
        None,
    )
    .map_err(|error| refuse(&format!("its certificate leads to none that was given: {error}")))?;
    Ok(name)
}
