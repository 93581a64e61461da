//! LVFS cabinets against gcab, cabextract, jcat-tool, certtool and fwupd.

use std::fmt::Write as _;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use carena::firmware::formats::metadata::{Rule, SignatureState};
use carena::firmware::formats::{Package, Trust, read_from};
use carena::firmware::version::VersionFormat;

use super::{bash, noise, one, refusal, rules, show, show_json, tool};

/// Shipped by fwupd-tests.
pub const SHIPPED: &str = "/usr/share/installed-tests/fwupd";
/// Shipped by fwupd: the certificate of the Linux Vendor Firmware Service.
pub const LVFS_CA: &str = "/etc/pki/fwupd/LVFS-CA.pem";

#[test]
fn debians_fake_devices_are_read_as_fwupd_reads_them() {
    for (file, version) in [("fakedevice123.cab", "1.2.3"), ("fakedevice124.cab", "1.2.4")] {
        let path = Path::new(SHIPPED).join(file);
        let found = show_json(&[path.to_str().unwrap(), "--trust", LVFS_CA]);
        assert_eq!(found["format"], "lvfs-cab");
        let component = &found["components"][0];
        let details = tool(Path::new("/"), "fwupdtool", &["get-details", path.to_str().unwrap()]);
        for (ours, theirs) in [
            (&component["version"], format!("New version:      {version}")),
            (&component["summary"], "Summary:          Firmware for the ACME Corp Integrated Webcam".into()),
            (&component["vendor"], "Vendor:           LVFS".into()),
            (
                &component["targets"][0]["guid"],
                "GUID:               b585990a-003e-5270-89d5-3705a17f9a43".into(),
            ),
        ] {
            assert!(details.contains(&theirs), "{details}");
            let (_, value) = theirs.split_once(':').unwrap();
            assert_eq!(ours.as_str().unwrap(), value.trim());
        }
        assert!(details.contains("Trusted payload") && details.contains("Trusted metadata"), "{details}");
        let trusted: Vec<_> =
            found["signatures"].as_array().unwrap().iter().filter(|s| s["state"] == "trusted").collect();
        assert_eq!(trusted.len(), 2, "payload and metadata: {found}");
        assert!(trusted.iter().all(|signature| signature["by"] == "CN=Richard Hughes"));
        // The payload's size, by gcab.
        let payload = &found["payloads"][0];
        let listed = tool(Path::new("/"), "gcab", &["-l", path.to_str().unwrap()]);
        assert!(
            listed.contains(&format!("{} {} ", payload["name"].as_str().unwrap(), payload["size"])),
            "{listed}"
        );
        assert_eq!(payload["checked"], true);
    }
}

#[test]
fn people_get_text_and_no_control_characters() {
    let path = format!("{SHIPPED}/fakedevice124.cab");
    let (exit, out, _) = show(&[&path, "--trust", LVFS_CA]);
    assert_eq!(exit, 0);
    assert!(
        out.contains("FakeDevice 1.2.4") && out.contains("fwupd device b585990a-003e-5270-89d5-3705a17f9a43")
    );
    assert!(out.contains("fakedevice124.bin: pkcs7 by CN=Richard Hughes: good"), "{out}");
    let (exit, _, error) = show(&["/etc/hostname"]);
    assert_eq!(exit, 254);
    assert!(error.contains("no firmware format that is known"), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let cab = Maker::new(directory.path()).name("Evil\u{9b}31m\u{7f}").make("evil.cab");
    let (exit, out, _) = show(&[cab.to_str().unwrap()]);
    assert_eq!(exit, 0);
    assert!(out.contains("Evil") && !out.chars().any(|c| c.is_control() && c != '\n'), "{out:?}");
}

/// Every single byte, in turn: what is accepted says and brings the very same.
#[test]
fn a_byte_flipped_anywhere_in_a_signed_cabinet_is_refused_or_changes_nothing() {
    let original = std::fs::read(Path::new(SHIPPED).join("fakedevice124.cab")).unwrap();
    let trust = Trust::read(&[LVFS_CA]).unwrap();
    let read = |bytes: &[u8]| read_from("a.cab", &mut Cursor::new(bytes), &trust);
    let good = read(&original).unwrap();
    let (mut refused, mut same) = (0, 0);
    for at in 0..original.len() {
        let mut bytes = original.clone();
        bytes[at] ^= 1 << (at % 8);
        match read(&bytes) {
            Err(_) => refused += 1,
            Ok(package) => {
                assert_eq!(without_signatures(package), without_signatures(good.clone()), "byte {at}");
                same += 1;
            }
        }
    }
    // Dates and attributes of members, which nobody uses, and OpenPGP signatures inside a checked block do not exist.
    assert!(refused > original.len() * 9 / 10, "{refused} refused, {same} without effect");
}

fn without_signatures(mut package: Package) -> Package {
    package.signatures.clear();
    package
}

#[test]
fn compressed_cabinets_of_many_blocks_are_unpacked_as_cabextract_does() {
    let directory = tempfile::tempdir().unwrap();
    // Within a block it repeats itself.
    let payload: Vec<u8> = noise(3000, 7).iter().cycle().take(200_000).copied().collect();
    let cab = Maker::new(directory.path()).payload(&payload).packed().make("big.cab");
    assert!(std::fs::metadata(&cab).unwrap().len() < 100_000, "it is not compressed");
    bash(directory.path(), "mkdir out; cabextract -q -d out big.cab");
    let theirs = bash(directory.path(), "sha256sum < out/fw.bin");
    let (component, payloads) = one(&cab);
    assert_eq!(payloads[0].size, payload.len() as u64);
    assert!(payloads[0].checked);
    assert_eq!(payloads[0].checksums["sha256"], theirs.split_whitespace().next().unwrap());
    assert_eq!(component.version_format, VersionFormat::Quad);
    assert_eq!(component.expected_s, Some(120));
    assert_eq!(component.severity.as_deref(), Some("high"));
    assert_eq!(component.notes.as_deref(), Some("Fixes < all > & more\n- one\n- two"));
    assert_eq!(rules(&component), [Rule::FwupdGuid { guid: "b585990a-003e-5270-89d5-3705a17f9a43".into() }]);
    let required: Vec<_> =
        component.requires.iter().map(|one| (one.kind.as_str(), one.compare.as_deref(), one.depth)).collect();
    assert_eq!(
        required,
        [("id", Some("ge"), None), ("firmware", Some("ge"), Some(1)), ("hardware", None, None)]
    );
    assert_eq!(component.requires[0].subject.as_deref(), Some("org.freedesktop.fwupd"));
    assert_eq!(component.conflicts[0].version.as_deref(), Some("0.9"));
    assert_eq!(component.hints["protocol"], "org.uefi.capsule");
}

/// gcab begins anew with each block, so this is made by hand: the second block copies from the first.
#[test]
fn blocks_that_refer_to_the_one_before_are_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (first, distance, length) = (noise(32_768, 8), 30_000, 258);
    let mut payload = first.clone();
    payload.extend_from_within(first.len() - distance..first.len() - distance + length);
    Maker::new(dir).payload(&payload).write();
    let metainfo = std::fs::read(dir.join("fw.metainfo.xml")).unwrap();
    let stored = |last: u8, bytes: &[u8]| {
        let size = bytes.len() as u16;
        [&[last][..], &size.to_le_bytes(), &(!size).to_le_bytes(), bytes].concat()
    };
    // RFC 1951: fixed codes; length 258 is symbol 285, the distance code 29 with 13 bits more, 256 ends the block.
    let mut bits: Vec<u8> = vec![0, 1, 0];
    let mut code =
        |value: usize, width: usize| bits.extend((0..width).rev().map(|at| (value >> at & 1) as u8));
    code(0b1100_0101, 8);
    code(29, 5);
    bits.extend((0..13).map(|at| ((distance - 24_577) >> at & 1) as u8));
    bits.extend([0; 7]);
    // Then a stored block, whose size begins at a byte.
    bits.extend([1, 0, 0]);
    let copied: Vec<u8> =
        bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |all, bit| all << 1 | bit)).collect();
    let second = [&b"CK"[..], &copied, &stored(1, &metainfo)[1..]].concat();
    let blocks =
        [([&b"CK"[..], &stored(1, &first)].concat(), first.len()), (second, length + metainfo.len())];
    let (mut files, mut data) = (Vec::new(), Vec::new());
    for (name, size, at) in [("fw.bin", payload.len(), 0), ("fw.metainfo.xml", metainfo.len(), payload.len())]
    {
        files.extend((size as u32).to_le_bytes());
        files.extend((at as u32).to_le_bytes());
        files.extend([0; 8]);
        files.extend(name.bytes().chain([0]));
    }
    for (packed, unpacked) in blocks {
        data.extend([0; 4]);
        data.extend((packed.len() as u16).to_le_bytes());
        data.extend((unpacked as u16).to_le_bytes());
        data.extend(packed);
    }
    let (files_at, data_at) = (44_u32, 44 + files.len() as u32);
    let mut cabinet = b"MSCF\0\0\0\0".to_vec();
    cabinet.extend((data_at + data.len() as u32).to_le_bytes());
    cabinet.extend([0; 4]);
    cabinet.extend(files_at.to_le_bytes());
    cabinet.extend([0, 0, 0, 0, 3, 1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    cabinet.extend(data_at.to_le_bytes());
    cabinet.extend([2, 0, 1, 0]);
    cabinet.extend(files);
    cabinet.extend(data);
    let path = dir.join("windowed.cab");
    std::fs::write(&path, cabinet).unwrap();
    bash(
        dir,
        "mkdir out; cabextract -q -d out windowed.cab; cmp out/fw.bin fw.bin; cmp out/fw.metainfo.xml fw.metainfo.xml",
    );
    assert!(one(&path).1[0].checked);
}

#[test]
fn a_payload_that_is_not_the_announced_one_is_refused_with_both_digests() {
    let directory = tempfile::tempdir().unwrap();
    let cab = Maker::new(directory.path()).sha256(&"0".repeat(64)).make("wrong.cab");
    let why = refusal(&cab);
    let found = bash(directory.path(), "sha256sum < fw.bin");
    let found = found.split_whitespace().next().unwrap();
    assert!(
        why.contains("fw.bin: sha256 is ") && why.contains(found) && why.contains("do not install it"),
        "{why}"
    );
}

/// fwupd would install the one too many with the others.
#[test]
fn a_cabinet_with_more_components_than_are_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    Maker::new(dir).make("one.cab");
    bash(
        dir,
        "for i in $(seq 65); do cp fw.metainfo.xml $i.metainfo.xml; done; \
         gcab -c 64.cab $(seq -f %g.metainfo.xml 64) fw.bin; gcab -c 65.cab $(seq -f %g.metainfo.xml 65) fw.bin",
    );
    let why = refusal(&dir.join("65.cab"));
    assert!(why.contains("the number of metainfo files is 65, the limit is 64"), "{why}");
    assert_eq!(super::read(&dir.join("64.cab")).unwrap().components.len(), 64);
}

#[test]
fn what_a_cabinet_lies_about_is_refused_with_file_and_byte() {
    let directory = tempfile::tempdir().unwrap();
    let cab = Maker::new(directory.path()).make("a.cab");
    let bytes = std::fs::read(&cab).unwrap();
    let refuse = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = bytes.clone();
        change(&mut changed);
        let path = directory.path().join(name);
        std::fs::write(&path, changed).unwrap();
        refusal(&path)
    };
    let member = bytes.windows(7).position(|window| window == b"fw.bin\0").unwrap();
    let escape = refuse("b.cab", &|bytes| bytes[member..member + 6].copy_from_slice(b"../../"));
    assert!(escape.contains(&format!("b.cab, byte {member}: \"../../\"")), "{escape}");
    let absolute = refuse("c.cab", &|bytes| bytes[member] = b'\\');
    assert!(absolute.contains("not a relative path"), "{absolute}");
    // Offset in the folder, far behind its end: what the crate for cabinets indexes with.
    let far = refuse("d.cab", &|bytes| {
        bytes[member - 12..member - 8].copy_from_slice(&0x7fff_0000_u32.to_le_bytes())
    });
    assert!(far.contains("of its folder, which has"), "{far}");
    let folder = refuse("e.cab", &|bytes| bytes[member - 8] = 9);
    assert!(folder.contains("a file is in folder 9 of 1"), "{folder}");
    let set = refuse("f.cab", &|bytes| bytes[30] |= 2);
    assert!(set.contains("byte 30: one cabinet of a set of several: not supported"), "{set}");
    let meta = bytes.windows(16).position(|window| window == b"fw.metainfo.xml\0").unwrap();
    let twice =
        refuse("i.cab", &|bytes| bytes[meta..meta + 16].copy_from_slice(b"fw.bin\0\0\0\0\0\0\0\0\0\0"));
    assert!(twice.contains("fw.bin stands in it twice"), "{twice}");
    let many = refuse("g.cab", &|bytes| bytes[28..30].copy_from_slice(&60_000_u16.to_le_bytes()));
    assert!(many.contains("byte 28: the number of folders or files is 60000, the limit is 4096"), "{many}");
    let lzx = refuse("h.cab", &|bytes| bytes[42] = 3);
    assert!(lzx.contains("LZX compression: not supported"), "{lzx}");
}

#[test]
fn metainfo_that_reaches_outside_or_never_ends_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = |text: &str| {
        let maker = Maker::new(directory.path());
        std::fs::write(directory.path().join("fw.bin"), b"x").unwrap();
        std::fs::write(directory.path().join("fw.metainfo.xml"), text).unwrap();
        maker.pack("x.cab");
        refusal(&directory.path().join("x.cab"))
    };
    let outside = refuse(
        "<!DOCTYPE c [<!ENTITY e SYSTEM \"/etc/passwd\">]><component type=\"firmware\">&e;</component>",
    );
    assert!(outside.contains("document type definition: not supported"), "{outside}");
    let entity = refuse("<component type=\"firmware\">&e;</component>");
    assert!(entity.contains("entity"), "{entity}");
    let deep = refuse(&"<a>".repeat(100_000));
    assert!(deep.contains("the depth of elements is 65, the limit is 64"), "{deep}");
    let wide = refuse(&format!("<component>{}</component>", "<a/>".repeat(300_000)));
    assert!(wide.contains("the number of elements"), "{wide}");
    let open = refuse("<component type=\"firmware\">");
    assert!(open.contains("the file ends within an element"), "{open}");
    let bare = refuse("<component type=\"firmware\"><id>a</id></component>");
    assert!(bare.contains("x.cab: fw.metainfo.xml: a release is missing"), "{bare}");
    let absent =
        refuse("<component type=\"firmware\"><releases><release version=\"1\"/></releases></component>");
    assert!(absent.contains("firmware.bin is missing"), "{absent}");
}

/// certtool makes the certificates, jcat-tool signs and judges.
#[test]
fn signatures_are_trusted_where_jcat_tool_trusts_them_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    for (key, kind) in
        [("ca", "ecdsa"), ("signer", "rsa"), ("other", "ecdsa"), ("web", "rsa"), ("ed", "ed25519")]
    {
        bash(dir, &format!("certtool --generate-privkey --key-type {kind} --outfile {key}.key 2>&1"));
    }
    let authority = "ca\ncert_signing_key\nexpiration_days = 30\nserial = 1";
    for (name, cn) in [("ca", "Test CA"), ("other", "Other CA")] {
        std::fs::write(dir.join("cfg"), format!("cn = \"{cn}\"\n{authority}\n")).unwrap();
        bash(
            dir,
            &format!(
                "certtool --generate-self-signed --load-privkey {name}.key --template cfg --outfile {name}.pem 2>&1"
            ),
        );
    }
    for (name, usage) in
        [("signer", "code_signing_key"), ("web", "tls_www_server"), ("ed", "code_signing_key")]
    {
        let config = format!("cn = \"{name}\"\nsigning_key\n{usage}\nexpiration_days = 10\nserial = 2\n");
        std::fs::write(dir.join("cfg"), config).unwrap();
        let line = format!(
            "certtool --generate-certificate --load-privkey {name}.key --load-ca-certificate ca.pem \
             --load-ca-privkey ca.key --template cfg --outfile {name}.pem 2>&1"
        );
        bash(dir, &line);
    }
    let trusted_by = |cab: &Path, certificate: &str| {
        let trust = Trust::read(&[dir.join(certificate)]).unwrap();
        carena::firmware::formats::read(cab, &trust)
    };
    let sign = |signer: &str, options: &str| {
        let maker = Maker::new(dir);
        maker.write();
        bash(dir, "rm -f fw.jcat");
        for file in ["fw.bin", "fw.metainfo.xml"] {
            bash(dir, &format!("jcat-tool self-sign fw.jcat {file} --kind sha256"));
            bash(dir, &format!("jcat-tool sign fw.jcat {file} {signer}.pem {signer}.key {options}"));
        }
        maker.pack("signed.cab");
        dir.join("signed.cab")
    };
    // The payload itself, and the text of its checksum, are signed.
    for options in ["", "--target sha256"] {
        let cab = sign("signer", options);
        let judged = bash(dir, "jcat-tool verify fw.jcat fw.bin --public-key ca.pem");
        assert!(judged.contains("PASSED pkcs7"), "{judged}");
        for certificate in ["ca.pem", "signer.pem"] {
            let package = trusted_by(&cab, certificate).unwrap();
            let states: Vec<_> = package.signatures.into_iter().map(|signature| signature.state).collect();
            assert_eq!(states, vec![SignatureState::Trusted { by: "CN=signer".into() }; 2], "{options}");
        }
        let judged =
            super::run(dir, "jcat-tool", &["verify", "fw.jcat", "fw.bin", "--public-key", "other.pem"]);
        assert!(String::from_utf8_lossy(&judged.stdout).contains("FAILED pkcs7"), "{judged:?}");
        let refused = carena::error::explain(&trusted_by(&cab, "other.pem").unwrap_err());
        assert!(
            refused.contains("no signature of fw.metainfo.xml can be trusted: signed by CN=signer"),
            "{refused}"
        );
    }
    let package = trusted_by(&sign("ed", ""), "ca.pem").unwrap();
    assert!(matches!(&package.signatures[0].state, SignatureState::Trusted { by } if by == "CN=ed"));
    // A certificate for a web server signs no firmware.
    let refused = carena::error::explain(&trusted_by(&sign("web", ""), "ca.pem").unwrap_err());
    assert!(refused.contains("leads to none that was given"), "{refused}");
    // The signature of one file under the name of another.
    let cab = sign("signer", "");
    bash(
        dir,
        "gunzip -c fw.jcat | sed 's/\"fw.bin\"/\"x\"/; s/\"fw.metainfo.xml\"/\"fw.bin\"/; s/\"x\"/\"fw.metainfo.xml\"/' \
         | sed 's/{\"Kind\":1,[^}]*},//g' | gzip > swapped; mv swapped fw.jcat",
    );
    Maker::new(dir).pack("signed.cab");
    let refused = carena::error::explain(&trusted_by(&cab, "ca.pem").unwrap_err());
    assert!(refused.contains("it signs other bytes"), "{refused}");
    // No signature at all.
    std::fs::remove_file(dir.join("fw.jcat")).unwrap();
    let cab = Maker::new(dir).make("unsigned.cab");
    let refused = carena::error::explain(&trusted_by(&cab, "ca.pem").unwrap_err());
    assert!(refused.contains("it has none of kind PKCS#7"), "{refused}");
    let (exit, _, error) = show(&[cab.to_str().unwrap(), "--trust", "/etc/hostname"]);
    assert_eq!(
        (exit, error.contains("/etc/hostname: it has no certificate in PEM form")),
        (254, true),
        "{error}"
    );
}

/// A cabinet with one payload, packed by gcab from a directory.
pub struct Maker {
    directory: PathBuf,
    name: String,
    payload: Vec<u8>,
    sha256: Option<String>,
    packed: bool,
}

impl Maker {
    pub fn new(directory: &Path) -> Self {
        let (name, payload) = ("Device".to_owned(), b"firmware of a device".to_vec());
        Self { directory: directory.to_owned(), name, payload, sha256: None, packed: false }
    }

    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    pub fn sha256(mut self, digest: &str) -> Self {
        self.sha256 = Some(digest.to_owned());
        self
    }

    pub fn packed(mut self) -> Self {
        self.packed = true;
        self
    }

    fn write(&self) {
        std::fs::write(self.directory.join("fw.bin"), &self.payload).unwrap();
        let digest = bash(&self.directory, "sha256sum < fw.bin");
        let digest =
            self.sha256.clone().unwrap_or_else(|| digest.split_whitespace().next().unwrap().to_owned());
        let mut text = String::new();
        write!(
            text,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><component type=\"firmware\"><id>com.acme.device</id>\
             <name>{}</name><summary>Firmware of a device</summary><developer_name>ACME</developer_name>\
             <provides><firmware type=\"flashed\">B585990A-003e-5270-89d5-3705a17f9a43</firmware></provides>\
             <requires><id compare=\"ge\" version=\"1.2.1\">org.freedesktop.fwupd</id>\
             <firmware compare=\"ge\" version=\"1.0\" depth=\"1\"/><hardware>6de5d951-d755-576b-bd09-c5cf66b27234</hardware>\
             </requires><conflicts><firmware compare=\"lt\" version=\"0.9\"/></conflicts>\
             <custom><value key=\"LVFS::VersionFormat\">quad</value>\
             <value key=\"LVFS::UpdateProtocol\">org.uefi.capsule</value></custom>\
             <releases><release version=\"1.2.3.4\" date=\"2026-01-02\" urgency=\"high\" install_duration=\"120\">\
             <checksum type=\"sha256\" filename=\"fw.bin\" target=\"content\">{digest}</checksum>\
             <description><p>Fixes &lt; all &#62; &amp; <![CDATA[more]]></p><ul><li>one</li><li>two</li></ul></description>\
             </release><release version=\"1.2.3.3\"/></releases></component>",
            self.name
        )
        .unwrap();
        std::fs::write(self.directory.join("fw.metainfo.xml"), text).unwrap();
    }

    /// What stands in the directory by now.
    pub fn pack(&self, cab: &str) {
        let packed = if self.packed { "-z" } else { "" };
        bash(
            &self.directory,
            &format!(
                "rm -f {cab}; gcab -c -n {packed} {cab} fw.bin fw.metainfo.xml $(ls fw.jcat 2>/dev/null || true)"
            ),
        );
    }

    pub fn make(self, cab: &str) -> PathBuf {
        self.write();
        self.pack(cab);
        self.directory.join(cab)
    }
}
