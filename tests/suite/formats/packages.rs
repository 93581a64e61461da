//! RPM and Debian packages against the tools that own these formats.

use std::path::{Path, PathBuf};

use carena::firmware::formats::Metadata;
use carena::firmware::formats::metadata::Rule;
use carena::firmware::version::VersionFormat;

use super::{bash, one, refusal, rules, run, tool};

const SPEC: &str = "Name: firmware-nic\nEpoch: 2\nVersion: 1.39\nRelease: 4\nSummary: Firmware of a network card\n\
    License: MIT\nVendor: ACME\nGroup: System/Firmware\nBuildArch: noarch\nRequires: bash >= 4\nRequires: coreutils\n\
    Conflicts: oldtool < 3\nObsoletes: firmware-oldnic < 9\n%description\nFirmware of a network card.\n%install\n\
    mkdir -p %{buildroot}/usr/lib/x86_64-linux-gnu/firmware-nic\n\
    echo setup > %{buildroot}/usr/lib/x86_64-linux-gnu/firmware-nic/.hpsetup\n\
    head -c 20000 /dev/urandom > %{buildroot}/usr/lib/x86_64-linux-gnu/firmware-nic/image.bin\n\
    %files\n/usr/lib/x86_64-linux-gnu/firmware-nic\n";

/// Built by rpmbuild, its payload packed as told.
pub fn rpm(directory: &Path, packing: &str) -> PathBuf {
    std::fs::write(directory.join("nic.spec"), SPEC).unwrap();
    let top = format!("_topdir {}/top-{packing}", directory.display());
    let packing = format!("_binary_payload {packing}");
    tool(directory, "rpmbuild", &["-bb", "--quiet", "--define", &top, "--define", &packing, "nic.spec"]);
    directory.join(top.strip_prefix("_topdir ").unwrap()).join("RPMS/noarch/firmware-nic-1.39-4.noarch.rpm")
}

#[test]
fn rpm_packages_say_what_rpm_says() {
    let directory = tempfile::tempdir().unwrap();
    for packing in ["w9.gzdio", "w6.xzdio", "w3.zstdio"] {
        let path = rpm(directory.path(), packing);
        let (component, payloads) = one(&path);
        let query =
            |format: &str| tool(directory.path(), "rpm", &["-qp", "--qf", format, path.to_str().unwrap()]);
        assert_eq!(component.id, query("%{NAME}"));
        assert_eq!(component.version, query("%{EPOCH}:%{VERSION}-%{RELEASE}"));
        assert_eq!(component.version_format, VersionFormat::Rpm);
        assert_eq!(component.name, query("%{SUMMARY}"));
        assert_eq!(component.vendor.as_deref(), Some(query("%{VENDOR}").as_str()));
        assert_eq!(component.arch.as_deref(), Some(query("%{ARCH}").as_str()));
        assert_eq!(component.os, [query("%{OS}")]);
        assert_eq!(component.released.as_deref(), Some(query("%{BUILDTIME}").as_str()));
        assert_eq!(component.hints["license"], query("%{LICENSE}"));
        assert_eq!(component.hints["replaces"], query("[%{OBSOLETENAME}]"));
        assert_eq!(rules(&component), [Rule::Package { package: "firmware-nic".into() }]);
        let theirs = query("[%{REQUIRENAME} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n]");
        let theirs: Vec<_> =
            theirs.lines().filter(|line| !line.starts_with("rpmlib(")).map(str::trim).collect();
        assert_eq!(written(&component.requires), theirs);
        let theirs = query("[%{CONFLICTNAME} %{CONFLICTFLAGS:depflags} %{CONFLICTVERSION}\n]");
        assert_eq!(written(&component.conflicts), theirs.lines().map(str::trim).collect::<Vec<_>>());
        let setup = query("[%{FILENAMES}\n]");
        assert!(setup.lines().any(|file| file == component.hints["hpe-setup"]), "{setup}");
        let payload = &payloads[0];
        assert!(payload.checked && payload.name.ends_with(&query("%{PAYLOADCOMPRESSOR}")), "{payload:?}");
        assert_eq!(payload.checksums["sha256"], query("[%{PAYLOADDIGEST}]"));
        let theirs =
            bash(directory.path(), &format!("tail -c {} {} | sha256sum", payload.size, path.display()));
        assert!(theirs.starts_with(&payload.checksums["sha256"]));
    }
}

/// "bash >= 4", as rpm writes it.
fn written(requirements: &[carena::firmware::formats::metadata::Requirement]) -> Vec<String> {
    let sign = |word: &str| match word {
        "lt" => "<",
        "le" => "<=",
        "eq" => "=",
        "ge" => ">=",
        _ => ">",
    };
    let one = |one: &carena::firmware::formats::metadata::Requirement| {
        let compare = one.compare.as_deref().map(sign).unwrap_or_default();
        let text =
            format!("{} {compare} {}", one.subject.clone().unwrap(), one.version.clone().unwrap_or_default());
        text.trim().to_owned()
    };
    requirements.iter().map(one).collect()
}

/// rpm -K is the judge of damage; it must not accept what we refuse, nor we what it refuses.
#[test]
fn damage_in_an_rpm_is_found_as_rpm_finds_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = rpm(directory.path(), "w9.gzdio");
    let bytes = std::fs::read(&path).unwrap();
    let judge = |path: &Path| {
        run(directory.path(), "rpm", &["-K", "--nosignature", path.to_str().unwrap()]).status.success()
    };
    assert!(judge(&path));
    let summary = bytes.windows(8).position(|window| window == b"Firmware").unwrap();
    let name = bytes.windows(13).rposition(|window| window == b"firmware-nic\0").unwrap();
    for at in [summary, name, bytes.len() - 9, bytes.len() / 2] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        let path = directory.path().join("damaged.rpm");
        std::fs::write(&path, damaged).unwrap();
        assert!(!judge(&path), "rpm accepts byte {at}");
        let why = refusal(&path);
        assert!(why.contains("sha256 is") && why.contains("damaged.rpm, byte"), "{why}");
    }
}

/// Built by dpkg-deb, its members packed as told.
pub fn deb(directory: &Path, packing: &str) -> PathBuf {
    let control = "Package: firmware-nic\nVersion: 2:1.39-4\nArchitecture: amd64\nMaintainer: ACME <fw@acme.example>\n\
        Section: non-free-firmware/kernel\nPriority: optional\nPre-Depends: dpkg (>= 1.17.5)\n\
        Depends: libc6 (>= 2.17), bash | dash, coreutils\nConflicts: oldtool (<< 3)\nBreaks: firmware-oldnic (<= 9)\n\
        Homepage: https://acme.example\nDescription: Firmware of a network card\n It has two lines.\n .\n And a third.\n";
    let root = directory.join("root");
    std::fs::create_dir_all(root.join("DEBIAN")).unwrap();
    std::fs::create_dir_all(root.join("usr/lib/firmware")).unwrap();
    std::fs::write(root.join("DEBIAN/control"), control).unwrap();
    std::fs::write(root.join("DEBIAN/postinst"), "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::write(root.join("usr/lib/firmware/nic.bin"), super::noise(70_000, 3)).unwrap();
    let name = format!("nic-{packing}.deb");
    bash(
        directory,
        &format!(
            "chmod 755 root/DEBIAN/postinst; dpkg-deb --root-owner-group --uniform-compression -Z{packing} -b root {name}"
        ),
    );
    directory.join(name)
}

#[test]
fn debian_packages_say_what_dpkg_deb_says() {
    let directory = tempfile::tempdir().unwrap();
    for packing in ["none", "gzip", "xz", "zstd"] {
        let path = deb(directory.path(), packing);
        let (component, payloads) = one(&path);
        let field = |name: &str| {
            tool(directory.path(), "dpkg-deb", &["-f", path.to_str().unwrap(), name]).trim_end().to_owned()
        };
        assert_eq!(component.id, field("Package"));
        assert_eq!(component.version, field("Version"));
        assert_eq!(component.version_format, VersionFormat::Deb);
        assert_eq!(component.arch, Some(field("Architecture")));
        assert_eq!(component.vendor, Some(field("Maintainer")));
        assert_eq!(component.hints["section"], field("Section"));
        assert_eq!(component.hints["homepage"], field("Homepage"));
        assert_eq!(
            relations(&component, &["Pre-Depends", "Depends"], &field),
            component_relations(&component.requires)
        );
        assert_eq!(
            relations(&component, &["Conflicts", "Breaks"], &field),
            component_relations(&component.conflicts)
        );
        assert_eq!(
            format!("{}\n It has two lines.\n .\n And a third.", component.name),
            field("Description")
        );
        assert_eq!(component.summary.as_deref(), Some("It has two lines.\n\nAnd a third."));
        // ar is the judge of where the payload is.
        let payload = &payloads[0];
        let theirs = bash(directory.path(), &format!("ar p {} {} | sha256sum", path.display(), payload.name));
        let line = format!(
            "tail -c +{} {} | head -c {} | sha256sum",
            payload.offset.unwrap() + 1,
            path.display(),
            payload.size
        );
        assert_eq!(theirs, bash(directory.path(), &line), "{packing}");
    }
}

fn relations(_: &Metadata, fields: &[&str], field: &dyn Fn(&str) -> String) -> Vec<String> {
    let all: Vec<String> = fields.iter().map(|name| field(name)).collect();
    all.join(", ").split(", ").map(str::to_owned).collect()
}

fn component_relations(requirements: &[carena::firmware::formats::metadata::Requirement]) -> Vec<String> {
    let sign = |word: &str| match word {
        "lt" => "<<",
        "le" => "<=",
        "eq" => "=",
        "ge" => ">=",
        _ => ">>",
    };
    let one = |one: &carena::firmware::formats::metadata::Requirement| match (&one.compare, &one.version) {
        (Some(compare), Some(version)) => {
            format!("{} ({} {version})", one.subject.clone().unwrap(), sign(compare))
        }
        _ => one.subject.clone().unwrap(),
    };
    requirements.iter().map(one).collect()
}

#[test]
fn packages_that_are_none_are_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    deb(dir, "xz");
    bash(dir, "cp nic-xz.deb a.deb; ar d a.deb control.tar.xz");
    assert!(refusal(&dir.join("a.deb")).contains("control.tar is missing"));
    bash(
        dir,
        "printf '3.0\\n' > debian-binary; ar x nic-xz.deb control.tar.xz data.tar.xz; rm -f b.deb; ar rcS b.deb debian-binary control.tar.xz data.tar.xz",
    );
    let version = refusal(&dir.join("b.deb"));
    assert!(version.contains("package format 3.0: not supported"), "{version}");
    bash(
        dir,
        "printf '2.0\\n' > debian-binary; mv control.tar.xz control.tar.lz; ar rcS c.deb debian-binary control.tar.lz data.tar.xz",
    );
    assert!(refusal(&dir.join("c.deb")).contains("packed as \".lz\""));
    // 64 MiB of zeros as a control archive, a thousand times smaller when packed.
    bash(
        dir,
        "mkdir bomb; cd bomb; truncate -s 64M control; tar cf - control | gzip -9 > ../control.tar.gz; cd ..; \
         ar rcS d.deb debian-binary control.tar.gz data.tar.xz",
    );
    let bomb = refusal(&dir.join("d.deb"));
    assert!(bomb.contains("the size of the control file is 1048577, the limit is 1048576"), "{bomb}");
    // One byte of the packed control archive.
    let mut bytes = std::fs::read(dir.join("nic-xz.deb")).unwrap();
    let control = bytes.windows(6).position(|window| window == b"\xfd7zXZ\0").unwrap();
    bytes[control + 60] ^= 1;
    std::fs::write(dir.join("e.deb"), bytes).unwrap();
    assert!(run(dir, "dpkg-deb", &["-f", "e.deb"]).status.code() != Some(0));
    let damaged = refusal(&dir.join("e.deb"));
    assert!(damaged.contains("e.deb: control.tar.xz"), "{damaged}");
}
