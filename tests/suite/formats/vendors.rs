//! HPE and Dell packages, made with zip, tar, gzip and iconv in the shape their makers give them.

use std::path::{Path, PathBuf};

use carena::firmware::formats::metadata::{Reboot, Rule};
use carena::firmware::version::VersionFormat;

use super::{bash, noise, one, refusal, rules, run};

/// Keys in both spellings that are found in the wild.
const PAYLOAD_JSON: &str = r#"{
  "DeviceClass": "79f0c163-0c13-4662-9dea-09235fef90cb", "PackageFormat": "FWPKG-v2", "Type": "Firmware",
  "UpdatableBy": ["Bmc", "RuntimeAgent"], "MinimumActiveVersion": "1.10",
  "Devices": {"Device": [
    {"DeviceName": "Adapter one", "Target": "A6B1A447-382a-5a4f-14e4-16d815900212", "Version": "237.1.148000",
     "FirmwareImages": [{"FileName": "adapter.HPb", "Order": 1, "ResetRequired": true, "ServerPowerOff": false,
       "DelayAfterInstallSec": 5, "InstallDurationSec": 360, "PLDMImage": true, "DirectFlashOk": true, "UEFIFlashable": false}]},
    {"DeviceName": "Adapter two", "Target": "a6b1a447-382a-5a4f-14e4-16d815900333", "Version": "237.1.148000",
     "FirmwareImages": [{"FileName": "adapter.HPb", "Order": 1, "ResetRequired": "no", "InstallDurationSec": "120",
       "directflashok": "true", "UefiFlashable": true}]}]},
  "package": {"id": {"product": "0efab16660ef48c2", "version": "b68e", "lucid_version": "x"},
    "name": [{"lang": "ja", "x_late": "jp"}, {"lang": "en", "x_late": "Adapter firmware"}],
    "version": {"value": "237.1.148000", "revision": "B"}, "release_date": {"year": "2026", "month": "7", "day": "4"},
    "manufacturer_name": [{"lang": "en", "x_late": "Hewlett Packard Enterprise"}],
    "products": {"product": [{"rom": "U32"}, {"rom": "U30"}]}}
}"#;

/// A description of a smart component.
const CP_XML: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<cpq_package version="2.0.1.0"><filename>CP054321.scexe</filename>
<operating_systems><operating_system key="4196"><operating_system_xlate lang="en">Red Hat Enterprise Linux 7 Server</operating_system_xlate></operating_system></operating_systems>
<products><product rom="P89"/></products>
<id product="4eb19d4bacd949c5" version="fc5e" lucid_version="P89"/>
<name><name_xlate lang="ja">jp</name_xlate><name_xlate lang="en">Online ROM Flash - DL380 Gen9 (P89)</name_xlate></name>
<version value="3.30_09-21-2023" revision="A" type_of_change="1"/>
<manufacturer_name><manufacturer_name_xlate lang="en">Hewlett Packard Enterprise</manufacturer_name_xlate></manufacturer_name>
<release_date year="2023" month="9" day="21" hour="0" minute="0" second="0"/>
<description><description_xlate lang="en"><![CDATA[The latest ROM & more.]]></description_xlate></description>
<prerequisite_notes><prerequisite_notes_xlate lang="en">The iLO driver must be running.</prerequisite_notes_xlate></prerequisite_notes>
<installation><command>CP054321</command><reboot_required value="yes"/></installation>
<revision_history><revision><version value="3.30_09-21-2023" revision="A"/><revision_fixes_xlate lang="en">Fixes one thing.</revision_fixes_xlate></revision></revision_history>
</cpq_package>"#;

/// A ZIP archive with a stored image and a packed description.
pub fn fwpkg(directory: &Path) -> PathBuf {
    std::fs::write(directory.join("payload.json"), PAYLOAD_JSON).unwrap();
    std::fs::write(directory.join("adapter.HPb"), noise(20_000, 5)).unwrap();
    bash(directory, "rm -f nic.fwpkg; zip -q0 nic.fwpkg adapter.HPb; zip -q9 nic.fwpkg payload.json");
    directory.join("nic.fwpkg")
}

#[test]
fn fwpkg_keys_are_found_in_any_case_and_images_where_unzip_finds_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = fwpkg(directory.path());
    let (component, payloads) = one(&path);
    assert_eq!(component.id, "0efab16660ef48c2");
    assert_eq!(component.name, "Adapter firmware");
    assert_eq!(component.version, "237.1.148000(B)");
    assert_eq!(component.version_format, VersionFormat::Hpe);
    assert_eq!(component.vendor.as_deref(), Some("Hewlett Packard Enterprise"));
    assert_eq!(component.released.as_deref(), Some("2026-07-04"));
    let guids = ["a6b1a447-382a-5a4f-14e4-16d815900212", "a6b1a447-382a-5a4f-14e4-16d815900333"];
    assert_eq!(rules(&component), guids.map(|guid| Rule::HpeTarget { guid: guid.into() }));
    assert_eq!(component.targets[1].device.as_deref(), Some("Adapter two"));
    assert_eq!(component.platforms[0].rule, Rule::HpeRomFamily { family: "U32".into() });
    assert_eq!(component.reboot, Some(Reboot::Needed));
    assert_eq!(component.expected_s, Some(365));
    assert_eq!(component.installers, ["bmc", "runtime-agent"]);
    assert_eq!(component.requires[0].version.as_deref(), Some("1.10"));
    assert_eq!(component.hints["direct-flash-ok"], "true");
    assert_eq!(component.hints["uefi-flashable"], "false");
    assert_eq!(component.payloads, ["adapter.HPb"]);
    let payload = &payloads[0];
    let theirs = bash(directory.path(), "unzip -p nic.fwpkg adapter.HPb | sha256sum");
    let line =
        format!("tail -c +{} nic.fwpkg | head -c {} | sha256sum", payload.offset.unwrap() + 1, payload.size);
    assert_eq!(theirs, bash(directory.path(), &line));
}

#[test]
fn fwpkg_archives_that_lie_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    fwpkg(dir);
    bash(dir, "cp nic.fwpkg a.fwpkg; zip -qd a.fwpkg adapter.HPb");
    assert!(refusal(&dir.join("a.fwpkg")).contains("a.fwpkg: adapter.HPb is missing"));
    bash(dir, "mkdir sub; cd sub; cp ../nic.fwpkg ../b.fwpkg; zip -q ../b.fwpkg ../nic.fwpkg");
    assert!(refusal(&dir.join("b.fwpkg")).contains("\"../nic.fwpkg\" is not a relative path"));
    bash(dir, "mkdir bomb; cd bomb; truncate -s 20M payload.json; zip -q9 ../c.fwpkg payload.json");
    let bomb = refusal(&dir.join("c.fwpkg"));
    assert!(
        bomb.contains("the size of a file that describes others is 20971520, the limit is 4194304"),
        "{bomb}"
    );
    bash(dir, "mkdir d; echo '{\"Devices\": [' > d/payload.json; cd d; zip -q ../d.fwpkg payload.json");
    assert!(refusal(&dir.join("d.fwpkg")).contains("d.fwpkg: payload.json: EOF while parsing"));
    bash(dir, "zip -q -P secret e.fwpkg payload.json");
    assert!(refusal(&dir.join("e.fwpkg")).contains("payload.json is encrypted: not supported"));
    bash(
        dir,
        "cp payload.json payload.jsoX; zip -q h.fwpkg payload.json payload.jsoX adapter.HPb; sed -i s/jsoX/json/g h.fwpkg",
    );
    assert!(refusal(&dir.join("h.fwpkg")).contains("a name stands in it twice"));
    bash(dir, "echo x > readme; zip -q f.zip readme");
    assert!(refusal(&dir.join("f.zip")).contains("no firmware format that is known"));
    // A byte of the packed description: the archive's CRC.
    let mut bytes = std::fs::read(dir.join("nic.fwpkg")).unwrap();
    let at = bytes.windows(12).position(|window| window == b"payload.json").unwrap();
    bytes[at + 200] ^= 1;
    std::fs::write(dir.join("g.fwpkg"), bytes).unwrap();
    assert!(!run(dir, "unzip", &["-tqq", "g.fwpkg"]).status.success());
    assert!(refusal(&dir.join("g.fwpkg")).contains("g.fwpkg: payload.json"));
}

/// A shell script with a gzipped archive behind it, which unpacks itself.
pub fn scexe(directory: &Path) -> PathBuf {
    std::fs::write(directory.join("CP054321.xml"), CP_XML).unwrap();
    std::fs::write(directory.join("CPQP8910.B0A"), noise(20_000, 9)).unwrap();
    let script = "#!/bin/sh\nSKIP=4\n[ \"$1\" = --unpack ] && { tail -n +$SKIP \"$0\" | tar xzf - -C \"$2\"; exit $?; }\n";
    std::fs::write(directory.join("head"), script).unwrap();
    bash(
        directory,
        "tar czf body CPQP8910.B0A ./CP054321.xml; cat head body > CP054321.scexe; chmod 755 CP054321.scexe",
    );
    directory.join("CP054321.scexe")
}

#[test]
fn scexe_scripts_are_read_without_being_run() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let path = scexe(dir);
    let (component, payloads) = one(&path);
    assert_eq!(component.id, "4eb19d4bacd949c5");
    assert_eq!(component.name, "Online ROM Flash - DL380 Gen9 (P89)");
    assert_eq!(component.version, "3.30_09-21-2023(A)");
    assert_eq!(component.summary.as_deref(), Some("The latest ROM & more."));
    assert_eq!(component.released.as_deref(), Some("2023-09-21"));
    assert_eq!(component.notes.as_deref(), Some("Fixes one thing."));
    assert_eq!(component.os, ["Red Hat Enterprise Linux 7 Server"]);
    assert_eq!(component.platforms[0].rule, Rule::HpeRomFamily { family: "P89".into() });
    assert_eq!(component.reboot, Some(Reboot::Needed));
    assert_eq!(component.requires[0].subject.as_deref(), Some("The iLO driver must be running."));
    assert_eq!(component.hints["installation-command"], "CP054321");
    assert_eq!(component.hints["type-of-change"], "1");
    // The script itself is the judge of what is in it.
    bash(dir, "mkdir out; ./CP054321.scexe --unpack out");
    for payload in &payloads {
        assert_eq!(std::fs::metadata(dir.join("out").join(&payload.name)).unwrap().len(), payload.size);
    }
    assert_eq!(payloads.len(), 2);
    // The same as an archive, and as an archive behind a program.
    bash(
        dir,
        "zip -q CP054321.zip CPQP8910.B0A CP054321.xml; { printf 'MZ'; head -c 5000 /dev/zero; cat CP054321.zip; } > CP054321.exe",
    );
    for other in ["CP054321.zip", "CP054321.exe"] {
        let (again, payloads) = one(&dir.join(other));
        assert_eq!(
            (again.id, again.version, payloads.len()),
            (component.id.clone(), component.version.clone(), 2),
            "{other}"
        );
    }
}

#[test]
fn scripts_with_other_or_damaged_archives_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let path = scexe(dir);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(dir.join("a.scexe"), &bytes).unwrap();
    assert!(!run(dir, "bash", &["-c", "tail -n +4 a.scexe | gzip -t"]).status.success());
    let damaged = refusal(&dir.join("a.scexe"));
    assert!(damaged.contains("a.scexe, byte "), "{damaged}");
    bash(dir, "head -c -500 CP054321.scexe > b.scexe");
    assert!(refusal(&dir.join("b.scexe")).contains("b.scexe, byte "));
    bash(dir, "tar czf body CPQP8910.B0A; cat head body > c.scexe");
    assert!(refusal(&dir.join("c.scexe")).contains("a CPnnnnnn.xml that describes it is missing"));
    assert!(refusal(&dir.join("head")).contains("no firmware format that is known"));
    bash(dir, "tar czf body --absolute-names --transform 's,^,../,' CPQP8910.B0A; cat head body > d.scexe");
    assert!(refusal(&dir.join("d.scexe")).contains("\"../CPQP8910.B0A\" is not a relative path"));
    // Names longer than a header holds, in both of their forms.
    let long = format!("{}/CP.xml", "d".repeat(150));
    bash(dir, &format!("mkdir -p {}; cp CP054321.xml {long}", "d".repeat(150)));
    for form in ["gnu", "pax"] {
        bash(dir, &format!("tar czf body --format={form} {long}; cat head body > e.scexe"));
        assert_eq!(one(&dir.join("e.scexe")).1[0].name, long, "{form}");
    }
}

const PACKAGE_XML: &str = r#"<?xml version="1.0" encoding="ENCODING"?>
<SoftwareComponent schemaVersion="1.0" packageID="C6CXW" releaseID="C6CXW" dateTime="2026-01-14T05:10:00-06:00" releaseDate="January 14, 2026" vendorVersion="22.31.6" dellVersion="22.31.6" packageType="LLXP" rebootRequired="true">
<Name><Display lang="de"><![CDATA[Netz]]></Display><Display lang="en"><![CDATA[Broadcom Gigabit Ethernet]]></Display></Name>
<ComponentType value="FRMW"><Display lang="en">Firmware</Display></ComponentType>
<Description><Display lang="en">Firmware of Gigabit adapters.</Display></Description>
<SupportedDevices><Device componentID="20137" embedded="1"><PCIInfo deviceID="165F" subDeviceID="1F5B" subVendorID="1028" vendorID="14E4"/><PCIInfo deviceID="1657" subDeviceID="" subVendorID="" vendorID="14E4"/><Display lang="en">BCM5720</Display></Device></SupportedDevices>
<SupportedSystems><Brand key="3" prefix="PE"><Display lang="en">PowerEdge</Display><Model systemID="0627" systemIDType="BIOS"><Display lang="en">R730</Display></Model></Brand></SupportedSystems>
<RevisionHistory><Display lang="en">- Fixes a hang.</Display></RevisionHistory>
<Criticality value="2"><Display lang="en">Urgent</Display></Criticality>
</SoftwareComponent>"#;

/// Script, description, archive, each after its line.
pub fn dup(directory: &Path) -> PathBuf {
    std::fs::create_dir_all(directory.join("payload")).unwrap();
    std::fs::write(directory.join("payload/fw.bin"), noise(20_000, 11)).unwrap();
    std::fs::write(directory.join("package.xml"), PACKAGE_XML.replace("ENCODING", "utf-8")).unwrap();
    std::fs::write(directory.join("head"), "#!/bin/bash\nA='#####Startofarchive#####'\nexit 1\n").unwrap();
    bash(
        directory,
        "tar czf body payload package.xml; { cat head; echo '#####Startofpackage#####'; cat package.xml; echo; \
         echo '#####Startofarchive#####'; cat body; } > Network_Firmware.BIN",
    );
    directory.join("Network_Firmware.BIN")
}

#[test]
fn dell_update_packages_are_read_from_the_script_and_from_the_archive() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let path = dup(dir);
    let utf16 = PACKAGE_XML.replace("ENCODING", "utf-16");
    std::fs::write(dir.join("wide.xml"), utf16).unwrap();
    bash(
        dir,
        "{ cat head; echo '#####Startofpackage#####'; printf '\\377\\376'; iconv -f utf-8 -t utf-16le wide.xml; \
         echo; echo '#####Startofarchive#####'; cat body; } > wide.BIN; \
         { cat head; echo '#####Startofarchive#####'; cat body; } > inside.BIN",
    );
    for path in [path, dir.join("wide.BIN"), dir.join("inside.BIN")] {
        let (component, payloads) = one(&path);
        assert_eq!((component.id.as_str(), component.version.as_str()), ("C6CXW", "22.31.6"));
        assert_eq!(component.name, "Broadcom Gigabit Ethernet");
        assert_eq!(component.version_format, VersionFormat::Dell);
        assert_eq!(component.severity.as_deref(), Some("Urgent"));
        assert_eq!(component.notes.as_deref(), Some("- Fixes a hang."));
        assert_eq!(component.reboot, Some(Reboot::Needed));
        let pci = |device, subvendor, subdevice| Rule::Pci {
            vendor: 0x14e4,
            device: Some(device),
            subvendor,
            subdevice,
        };
        assert_eq!(
            rules(&component),
            [
                Rule::DellComponent { component: "20137".into() },
                pci(0x165f, Some(0x1028), Some(0x1f5b)),
                pci(0x1657, None, None)
            ]
        );
        assert_eq!(component.platforms[0].rule, Rule::DellSystem { system: "0627".into() });
        assert_eq!(component.platforms[0].device.as_deref(), Some("R730"));
        assert_eq!(component.hints["component-type"], "FRMW");
        let names: Vec<_> = payloads.iter().map(|payload| payload.name.as_str()).collect();
        assert_eq!(names.join("\n"), bash(dir, "tar tzf body | grep -v '/$'").trim());
    }
    bash(
        dir,
        "{ cat head; echo '#####Startofpackage#####'; echo '<a>'; echo '#####Startofarchive#####'; cat body; } > bad.BIN",
    );
    let bytes = std::fs::read(dir.join("bad.BIN")).unwrap();
    let end = bytes.windows(3).position(|window| window == b"<a>").unwrap() + 3;
    let bad = refusal(&dir.join("bad.BIN"));
    assert!(bad.contains(&format!("bad.BIN, byte {end}: the file ends within an element")), "{bad}");
}
