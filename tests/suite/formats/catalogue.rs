//! Catalogues: SPP-like directories and ISO images by genisoimage and xorriso, and baselines of our own.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{bash, read, refusal, run, show, show_json, tool, vendors};

/// A tree as an SPP has it, with `count` components.
pub fn spp(root: &Path, count: usize) {
    std::fs::create_dir_all(root.join("manifest")).unwrap();
    std::fs::create_dir_all(root.join("packages")).unwrap();
    let mut catalogue = String::from(
        "{\"SchemaVersion\": \"1.0\", \"Prerequisites\": [{\"x\": [1, {}]}], \"Bundles\": [{\"Package\": \
        {\"Name\": [{\"Lang\": \"en\", \"Value\": \"Gen10 SPP\"}], \"Version\": \"2026.07.00.00\"}}], \"Components\": [",
    );
    for index in 0..count {
        let name = format!(
            "{index:04}_with_a_long_name_as_vendors_like_them_more_than_sixty_four_characters.pldm.fwpkg"
        );
        std::fs::write(root.join("packages").join(&name), format!("package {index}")).unwrap();
        let languages: String = ["en", "de", "fr", "ja", "ko", "cn", "tw", "es", "it"]
            .map(|lang| {
                format!(
                    "{{\"Lang\": \"{lang}\", \"Value\": \"Component {index} {}\"}}",
                    "in words ".repeat(60)
                )
            })
            .join(", ");
        write!(
            catalogue,
            "{}{{\"DeviceClass\": \"79f0c163\", \"Type\": \"Firmware\", \"UpdatableBy\": [\"Bmc\"], \"Devices\": {{\"Device\": [\
             {{\"DeviceName\": \"Device {index}\", \"Target\": \"a6b1a447-382a-5a4f-14e4-{index:012x}\", \"Version\": \"1.{index}\", \
             \"FirmwareImages\": [{{\"FileName\": \"x.HPb\", \"ResetRequired\": true, \"InstallDurationSec\": 60}}]}}]}}, \
             \"Package\": {{\"Name\": [{languages}], \"Version\": \"1.{index}\", \"Files\": [{{\"Name\": \"{name}\", \"Bytes\": \"{}\", \
             \"MD5Sum\": \"5cc3c0fa83cf5903efeef60259d21566\"}}]}}}}",
            if index == 0 { "" } else { ", " },
            format!("package {index}").len(),
        )
        .unwrap();
    }
    catalogue.push_str("]}");
    std::fs::write(root.join("manifest/metadata.json"), catalogue).unwrap();
}

/// The bound on memory is the kernel's: more address space than this and the listing dies.
#[test]
fn a_tree_of_800_components_and_a_10_gib_image_are_listed_in_seconds_with_flat_memory() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    spp(&dir.join("spp"), 800);
    bash(dir, "genisoimage -quiet -R -J -o spp.iso spp; truncate -s 10G spp.iso");
    let sizes = bash(dir, "stat -c '%s %b' spp.iso");
    let (size, blocks) = sizes.trim().split_once(' ').unwrap();
    assert_eq!(size, "10737418240");
    assert!(blocks.parse::<u64>().unwrap() < 100_000, "it is not sparse: {sizes}");
    let mut listings = Vec::new();
    for path in ["spp", "spp.iso"] {
        let begun = Instant::now();
        let line =
            format!("ulimit -v 204800; exec {} firmware show {path} --json", env!("CARGO_BIN_EXE_carena"));
        let listed = bash(dir, &line);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed["title"], "Gen10 SPP 2026.07.00.00");
        let components = listed["components"].as_array().unwrap();
        assert_eq!(components.len(), 800);
        assert!(components.iter().all(|component| component["hints"].get("file-problem").is_none()));
        assert_eq!(components[799]["version"], "1.799");
        listings.push((listed["components"].clone(), listed["payloads"].as_array().unwrap().len()));
    }
    assert_eq!(listings[0], listings[1]);
    assert_eq!(listings[0].1, 800);
    let (exit, out, _) = show(&[dir.join("spp.iso").to_str().unwrap()]);
    assert_eq!((exit, out.lines().count()), (0, 803), "{}", &out[..500]);
}

/// isoinfo is the judge of where a file is; the same package in the image and outside says the same.
#[test]
fn members_of_images_of_every_kind_are_read_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    spp(&dir.join("spp"), 3);
    let package = vendors::fwpkg(dir);
    std::fs::copy(&package, dir.join("spp/packages/nic.fwpkg")).unwrap();
    let outside = show_json(&[package.to_str().unwrap()]);
    for (options, judge) in [("-R", "-R"), ("-J -joliet-long", "-J"), ("-R -J", "-R"), ("-iso-level 4", "-l")]
    {
        bash(dir, &format!("genisoimage -quiet {options} -o a.iso spp"));
        let listed = read(&dir.join("a.iso")).unwrap();
        let listing = tool(dir, "isoinfo", &["-i", "a.iso", "-l", judge]);
        let payload = &listed.payloads[1];
        let line =
            listing.lines().find(|line| line.contains("0001_with")).unwrap_or_else(|| panic!("{listing}"));
        // [ SECTOR FLAGS] in brackets before the name.
        let sector: u64 = line.split('[').nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(payload.offset, Some(sector * 2048), "{options}: {line}");
        let inside = show_json(&[dir.join("a.iso").to_str().unwrap(), "--member", "packages/nic.fwpkg"]);
        assert_eq!(inside, outside, "{options}");
    }
    // Without any extension, names are cut and in capitals: the catalogue is found, its packages are not.
    bash(
        dir,
        "mkdir iso1; cp -r spp/manifest iso1/; genisoimage -quiet -iso-level 1 -o b.iso iso1 2>/dev/null",
    );
    assert!(
        refusal(&dir.join("b.iso")).contains("manifest/metadata.json or manifest/manifest.json is missing")
    );
    bash(dir, "xorriso -as mkisofs -quiet -o c.iso spp 2>/dev/null");
    let inside = show_json(&[dir.join("c.iso").to_str().unwrap(), "--member", "PACKAGES/nic.fwpkg"]);
    assert_eq!(inside, outside);
    let inside = show_json(&[dir.join("spp").to_str().unwrap(), "--member", "packages/nic.fwpkg"]);
    assert_eq!(inside, outside);
    for (member, why) in [
        ("packages/none", "packages/none is missing"),
        ("packages", "not a file in one piece"),
        ("manifest/metadata.json", "no firmware format that is known"),
    ] {
        let (exit, _, error) = show(&[dir.join("a.iso").to_str().unwrap(), "--member", member]);
        assert!(exit == 254 && error.contains(why), "{error}");
    }
    let (exit, _, error) = show(&[dir.join("spp").to_str().unwrap(), "--member", "../nic.fwpkg"]);
    assert!(exit == 254 && error.contains("not a relative path"), "{error}");
}

#[test]
fn what_a_catalogue_announces_and_is_not_there_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    spp(dir, 3);
    bash(dir, "cd packages; rm 0000_*; echo longer >> 0001_*.fwpkg");
    let listed = read(dir).unwrap();
    let problem =
        |index: usize| listed.components[index].hints.get("file-problem").cloned().unwrap_or_default();
    assert!(problem(0).ends_with("four_characters.pldm.fwpkg is missing"), "{}", problem(0));
    assert!(problem(1).ends_with("has 16 bytes, announced are 9"), "{}", problem(1));
    assert_eq!(problem(2), "");
    // The older form of the catalogue.
    std::fs::remove_file(dir.join("manifest/metadata.json")).unwrap();
    let old = r#"{"manifest": [{"DeviceClass": "", "Devices": {"Device": []}, "Type": "Firmware", "UpdatableBy": ["RuntimeAgent"],
        "package": {"name": [{"key": "x", "lang": "en", "x_late": "Old one"}], "version": {"value": "2.1"}, "filename": "cp1.rpm"}}]}"#;
    std::fs::write(dir.join("manifest/manifest.json"), old).unwrap();
    std::fs::write(dir.join("packages/CP1.rpm"), "x").unwrap();
    let listed = read(dir).unwrap();
    assert_eq!(
        (listed.components[0].name.as_str(), listed.components[0].version.as_str()),
        ("Old one", "2.1")
    );
    assert_eq!(listed.components[0].installers, ["runtime-agent"]);
    assert_eq!(listed.payloads[0].name, "packages/cp1.rpm");
    for (text, why) in [
        ("{\"manifest\": [{]}", "manifest/manifest.json: "),
        ("{}", "it has no \"Components\""),
        ("[]", "invalid type"),
    ] {
        std::fs::write(dir.join("manifest/manifest.json"), text).unwrap();
        let refused = refusal(dir);
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn the_demonstration_baseline_is_shown_and_a_changed_payload_refused() {
    let directory = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-cache/demo");
    bash(directory.path(), &format!("cp -r {} demo", demo.display()));
    let copy = directory.path().join("demo");
    let listed = show_json(&[copy.to_str().unwrap()]);
    assert_eq!(listed["format"], "baseline");
    let payload = &listed["payloads"][0];
    let name = payload["name"].as_str().unwrap();
    let theirs = run(&copy, "sha256sum", &[name]).stdout;
    assert!(String::from_utf8(theirs).unwrap().starts_with(payload["checksums"]["sha256"].as_str().unwrap()));
    let mut bytes = std::fs::read(copy.join(name)).unwrap();
    bytes[0] ^= 1;
    std::fs::write(copy.join(name), bytes).unwrap();
    let refused = refusal(&copy);
    assert!(refused.contains("sha256 is"), "{refused}");
}
