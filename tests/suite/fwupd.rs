//! LVFS cabinets on real nodes: Debian's fwupd with its fake device, its daemon, its tool, and its words.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carena::digest::Sha256;
use carena::firmware::baseline::Baseline;
use carena::firmware::formats::Trust;
use carena::firmware::from_package::{self, PackageFile};
use carena::firmware::manifest;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::deployment::deploy_watched;
use crate::lab::{Lab, difference};
use crate::operator::{Run, deploy, is, run};

/// Shipped by fwupd-tests: real cabinets for a webcam that does not exist, at version 1.2.2.
const SHIPPED: &str = "/usr/share/installed-tests/fwupd";
const WEBCAM: &str = "b585990a-003e-5270-89d5-3705a17f9a43";

fn shipped(version: &str) -> Vec<u8> {
    let name = format!("fakedevice{}.cab", version.replace('.', ""));
    std::fs::read(Path::new(SHIPPED).join(name)).unwrap()
}

/// A baseline of one cabinet, made from what the cabinet says of itself.
fn baseline(lab: &Lab, name: &str, cabinet: &[u8]) -> PathBuf {
    let directory = lab.dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("webcam.cab");
    std::fs::write(&path, cabinet).unwrap();
    let read = carena::firmware::formats::read(&path, &Trust::default()).unwrap();
    let file =
        PackageFile { name: "webcam.cab".into(), sha256: Sha256::of(cabinet), size: cabinet.len() as u64 };
    let made = from_package::components(&read, &file).unwrap();
    let components = made.into_iter().map(|made| made.component).collect();
    let made = Baseline { id: name.parse().unwrap(), version: "1".into(), title: "test".into(), components };
    std::fs::write(directory.join("baseline.toml"), manifest::write(&made)).unwrap();
    directory
}

/// A cabinet with more in its metainfo, made by gcab from what Debian ships.
fn cabinet_that_requires(lab: &Lab, what: &str) -> Vec<u8> {
    let script = format!(
        "cd {0} && cp {SHIPPED}/fakedevice124.bin . && \
         sed 's|</provides>|</provides><requires>{what}</requires>|' {SHIPPED}/fakedevice124.metainfo.xml > w.metainfo.xml && \
         gcab -c made.cab w.metainfo.xml fakedevice124.bin",
        lab.dir().display()
    );
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    std::fs::read(lab.dir().join("made.cab")).unwrap()
}

/// fwupd on a node as an administrator would set it up, its fake device as `behaviour` says; none of its state is older.
fn configure(lab: &Lab, k: usize, behaviour: &str) {
    let configuration = format!("[fwupd]\nTestDevices=true\n[test]\n{behaviour}\n");
    lab.on_node(
        k,
        &format!("printf '{configuration}' > /etc/fwupd/fwupd.conf; rm -rf /var/lib/fwupd /var/cache/fwupd"),
    );
}

/// fwupd's daemon with a system bus, which a node without systemd lacks.
fn start_daemon(lab: &Lab, k: usize) {
    lab.on_node(
        k,
        "mkdir -p /run/dbus && dbus-daemon --system --fork </dev/null >/dev/null 2>&1
         setsid /usr/libexec/fwupd/fwupd </dev/null >/dev/null 2>&1 &",
    );
    // Before it has its name on the bus, whoever asked for it would start a second one.
    let owned = "dbus-send --system --print-reply --dest=org.freedesktop.DBus / \
                 org.freedesktop.DBus.NameHasOwner string:org.freedesktop.fwupd 2>/dev/null";
    crate::boot::until("fwupd's daemon", Duration::from_secs(60), || lab.on_node(k, owned).contains("true"));
}

/// The fake device's version by the daemon's own word.
fn device_version(lab: &Lab, k: usize) -> Option<String> {
    let said = lab.on_node(k, "fwupdmgr get-devices --json 2>/dev/null");
    let said: Value = serde_json::from_str(&said).ok()?;
    let mut devices = said["Devices"].as_array()?.iter();
    let webcam = devices.find(|device| device["Guid"][0] == WEBCAM)?;
    Some(webcam["Version"].as_str()?.to_owned())
}

/// A node apart from what fwupd itself keeps: its history, and its daemon's cache.
fn apart_from_fwupd(lab: &Lab, k: usize) -> String {
    let of_fwupd = |line: &&str| line.starts_with("/var/lib/fwupd") || line.starts_with("/var/cache/fwupd");
    let snapshot = lab.snapshot(k) + &lab.on_node(k, "pidof fwupd");
    snapshot.lines().filter(|line| !of_fwupd(line)).fold(String::new(), |mut all, line| {
        writeln!(all, "{line}").unwrap();
        all
    })
}

fn told<'a>(run: &'a Run, lab: &Lab, k: usize) -> (&'a str, &'a str) {
    let component = run.component(lab, k);
    (component["outcome"].as_str().unwrap(), component["why"].as_str().unwrap_or_default())
}

#[test]
fn a_cabinet_updates_its_device_and_nothing_else() {
    let lab = Lab::up(3);
    configure(&lab, 1, "WriteDelay=1500");
    start_daemon(&lab, 1);
    lab.on_node(2, "rm -f /usr/bin/fwupdtool /usr/bin/fwupdmgr");
    lab.on_node(3, "printf '[fwupd]\n' > /etc/fwupd/fwupd.conf");
    let newer = baseline(&lab, "newer", &shipped("1.2.4"));
    let older = baseline(&lab, "older", &shipped("1.2.3"));
    let before: Vec<String> = (1..=3).map(|k| apart_from_fwupd(&lab, k)).collect();
    assert_eq!(device_version(&lab, 1).as_deref(), Some("1.2.2"));

    let fleet = lab.fleet(&[1], newer.to_str().unwrap(), "");
    let dry = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json", "--dry-run"]));
    let (outcome, why) = told(&dry, &lab, 1);
    assert_eq!((dry.exit, outcome), (0, "would-update"), "{}", dry.all);
    assert!(why.starts_with("1.2.2 is installed, 1.2.4 is newer"), "{why}");
    assert_eq!(device_version(&lab, 1).as_deref(), Some("1.2.2"));

    let first = deploy(&lab, &lab.fleet(&[1, 2, 3], newer.to_str().unwrap(), ""));
    assert_eq!(first.exit, 0, "{}", first.all);
    let webcam = first.component(&lab, 1);
    assert_eq!(
        (&webcam["outcome"], &webcam["from"], &webcam["to"]),
        (&"updated".into(), &"1.2.2".into(), &"1.2.4".into())
    );
    assert_eq!(device_version(&lab, 1).as_deref(), Some("1.2.4"));
    let said = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default();
        is(event, "install", "progress") && message.contains("Writing") && message.ends_with('%')
    };
    assert!(first.events.iter().any(said), "fwupd's progress is passed on: {}", first.all);
    let none = format!("for fwupd device {WEBCAM}, and fwupd on the node: not installed");
    assert_eq!(told(&first, &lab, 2), ("not-applicable", none.as_str()));
    let none = format!("for fwupd device {WEBCAM}, the node has none of it");
    assert_eq!(told(&first, &lab, 3), ("not-applicable", none.as_str()));

    let second = deploy(&lab, &lab.fleet(&[1], newer.to_str().unwrap(), ""));
    assert_eq!((second.exit, second.outcomes(&lab, 1)), (3, vec!["current"]), "{}", second.all);
    let third = deploy(&lab, &lab.fleet(&[1], older.to_str().unwrap(), ""));
    assert_eq!((third.exit, third.outcomes(&lab, 1)), (3, vec!["newer-installed"]), "{}", third.all);
    for (mode, from) in [("downgrade", "1.2.4"), ("rewrite", "1.2.3")] {
        let options = format!("mode = {mode:?}");
        let down = deploy(&lab, &lab.fleet(&[1], older.to_str().unwrap(), &options));
        let webcam = down.component(&lab, 1);
        assert_eq!((&webcam["outcome"], &webcam["from"]), (&"updated".into(), &from.into()), "{}", down.all);
        assert_eq!(device_version(&lab, 1).as_deref(), Some("1.2.3"));
    }
    for (k, before) in (1..=3).zip(before) {
        assert_eq!(difference(&before, &apart_from_fwupd(&lab, k)), "", "node {k}");
    }
}

#[test]
fn without_a_daemon_none_is_started_and_a_failure_keeps_fwupds_words() {
    let lab = Lab::up(2);
    configure(&lab, 1, "WriteSupported=false");
    // Forgets what was written with the process that wrote it, so the version read back is the old one.
    configure(&lab, 2, "");
    let cabinet = baseline(&lab, "cabinet", &shipped("1.2.4"));
    let before = [1, 2].map(|k| apart_from_fwupd(&lab, k));
    let done = deploy(&lab, &lab.fleet(&[1, 2], cabinet.to_str().unwrap(), ""));
    assert_eq!(done.exit, 253, "{}", done.all);
    let why = "fwupd failed: failed to write-firmware: device was not in supported mode";
    assert_eq!(told(&done, &lab, 1), ("failed", why));
    let log = done.component(&lab, 1)["log"].as_str().unwrap();
    assert!(log.contains("Writing") && log.contains("device was not in supported mode"), "{log}");
    let why = "the installer reports success, but version 1.2.2 was read back instead of 1.2.4";
    assert_eq!(told(&done, &lab, 2), ("unverified", why));
    for (k, before) in [1, 2].into_iter().zip(before) {
        assert_eq!(difference(&before, &apart_from_fwupd(&lab, k)), "", "node {k}");
        assert_eq!(lab.on_node(k, "ls /run/lock 2>/dev/null; pidof fwupd gpg-agent"), "");
    }
}

#[test]
fn what_fwupd_refuses_is_skipped_in_its_words_before_anything_is_written() {
    let lab = Lab::up(2);
    configure(&lab, 1, "");
    configure(&lab, 2, "");
    let requires = r#"<id compare="ge" version="99.0.0">org.freedesktop.fwupd</id>"#;
    let cabinet = baseline(&lab, "fwupd99", &cabinet_that_requires(&lab, requires));
    let done = deploy(&lab, &lab.fleet(&[1], cabinet.to_str().unwrap(), ""));
    let (outcome, why) = told(&done, &lab, 1);
    assert_eq!((done.exit, outcome), (253, "skipped"), "{}", done.all);
    assert!(
        why.starts_with(
            "fwupd refuses it, and has written nothing: Not compatible with org.freedesktop.fwupd"
        ),
        "{why}"
    );
    let hardware = "<hardware>6de5d951-d755-576b-bd09-c5cf66b27234</hardware>";
    let cabinet = baseline(&lab, "hardware", &cabinet_that_requires(&lab, hardware));
    let done = deploy(&lab, &lab.fleet(&[2], cabinet.to_str().unwrap(), ""));
    let (outcome, why) = told(&done, &lab, 2);
    assert_eq!((done.exit, outcome), (253, "skipped"), "{}", done.all);
    assert!(why.ends_with("no HWIDs matched 6de5d951-d755-576b-bd09-c5cf66b27234"), "{why}");
}

/// Two devices, one cabinet: fwupd takes both in one go, whichever component asks for it.
#[test]
fn a_cabinet_for_several_devices_is_installed_once() {
    let lab = Lab::up(1);
    configure(&lab, 1, "CompositeChild=true");
    // The daemon takes nothing that is not signed, unless the node's owner says so.
    lab.on_node(1, "sed -i '/^TestDevices/a OnlyTrusted=false' /etc/fwupd/fwupd.conf");
    start_daemon(&lab, 1);
    let devices = [
        ("one", "7fddead7-12b5-4fb9-9fa0-6d30305df755", "2"),
        ("two", "b8fe6b45-8702-4bcd-8120-ef236caac76f", "11"),
    ];
    let mut made = format!("cd {} && cp {SHIPPED}/fakedevice124.bin .", lab.dir().display());
    for (name, guid, version) in devices {
        write!(
            made,
            " && sed -e 's|{WEBCAM}|{guid}|; s|fakedevice.firmware|{name}.firmware|; s|>triplet<|>plain<|; \
             s|com.acme.test|com.acme|; s|version=\"1.2.4\"|version=\"{version}\"|' \
             {SHIPPED}/fakedevice124.metainfo.xml > {name}.metainfo.xml"
        )
        .unwrap();
    }
    made.push_str(" && gcab -c several.cab one.metainfo.xml two.metainfo.xml fakedevice124.bin");
    assert!(std::process::Command::new("sh").args(["-c", &made]).status().unwrap().success());
    let cabinet = std::fs::read(lab.dir().join("several.cab")).unwrap();
    let directory = baseline(&lab, "several", &cabinet);
    let done = deploy(&lab, &lab.fleet(&[1], directory.to_str().unwrap(), ""));
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated", "updated"]), "{}", done.all);
    let told: Vec<_> = done.node(&lab, 1)["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| (component["from"].as_str().unwrap(), component["to"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("1", "2"), ("10", "11")]);
    assert_eq!(done.component(&lab, 1)["id"], "org.fwupd.one.firmware");
    let installers = done.events.iter().filter(|event| is(event, "install", "started")).count();
    assert_eq!(installers, 1, "{}", done.all);
}

#[test]
fn an_update_that_needs_a_restart_says_so() {
    let lab = Lab::up(1);
    configure(&lab, 1, "NeedsReboot=true");
    start_daemon(&lab, 1);
    let cabinet = baseline(&lab, "cabinet", &shipped("1.2.4"));
    let done = deploy(&lab, &lab.fleet(&[1], cabinet.to_str().unwrap(), "reboot = \"never\""));
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (1, vec!["updated-reboot-needed"]), "{}", done.all);
}

#[test]
fn a_cancel_waits_for_what_fwupd_writes() {
    let lab = Lab::up(1);
    configure(&lab, 1, "WriteDelay=6000");
    start_daemon(&lab, 1);
    let cabinet = baseline(&lab, "cabinet", &shipped("1.2.4"));
    let before = apart_from_fwupd(&lab, 1);
    let fleet = lab.fleet(&[1], cabinet.to_str().unwrap(), "");
    let mut cancelled = false;
    let done = deploy_watched(&lab, &fleet, |event| {
        let writes = is(event, "install", "progress")
            && event["message"].as_str().is_some_and(|message| message.contains("Writing"));
        (writes && !std::mem::replace(&mut cancelled, true)).then_some(Signal::SIGINT)
    });
    assert!(cancelled, "{}", done.all);
    assert_eq!(done.outcomes(&lab, 1), ["updated"], "{}", done.all);
    assert_eq!(device_version(&lab, 1).as_deref(), Some("1.2.4"));
    assert_eq!(difference(&before, &apart_from_fwupd(&lab, 1)), "");
}

/// Told to stop while it asks fwupd, an engine leaves nothing of it running.
#[test]
fn a_cancel_ends_a_question_to_fwupd_with_all_that_it_started() {
    let lab = Lab::up(1);
    configure(&lab, 1, "");
    // The real one, held up: it is asked, and has not answered yet.
    lab.on_node(
        1,
        "cp /bin/sleep /var/lib/held-fwupd && printf '#!/bin/sh\n/var/lib/held-fwupd 300\n' > /usr/bin/fwupdtool",
    );
    let cabinet = baseline(&lab, "cabinet", &shipped("1.2.4"));
    let before = lab.snapshot(1);
    let mut cancelled = false;
    let fleet = lab.fleet(&[1], cabinet.to_str().unwrap(), "");
    let done = deploy_watched(&lab, &fleet, |event| {
        if !is(event, "inventory", "started") || std::mem::replace(&mut cancelled, true) {
            return None;
        }
        let asked = || !lab.on_node(1, "pidof held-fwupd").is_empty();
        crate::boot::until("the question to fwupd", Duration::from_secs(30), asked);
        Some(Signal::SIGINT)
    });
    assert!(cancelled, "{}", done.all);
    assert_eq!(lab.on_node(1, "pidof held-fwupd"), "", "{}", done.all);
    assert_eq!(difference(&before, &lab.snapshot(1)), "");
}

#[test]
fn a_flipped_byte_never_comes_to_fwupd() {
    let lab = Lab::up(1);
    configure(&lab, 1, "");
    let directory = baseline(&lab, "flipped", &shipped("1.2.4"));
    let mut cabinet = shipped("1.2.4");
    let middle = cabinet.len() / 2;
    cabinet[middle] ^= 1;
    std::fs::write(directory.join("webcam.cab"), cabinet).unwrap();
    let before = lab.snapshot(1);
    let imported = run(&mut lab.carena(&["cache", "import", "--unsigned-ok", directory.to_str().unwrap()]));
    assert_eq!(imported.exit, 254, "{}", imported.all);
    assert!(imported.all.contains("webcam.cab") && imported.all.contains("SHA-256"), "{}", imported.all);
    // Used as it is, without an import, it is the engine that refuses it.
    let done = deploy(&lab, &lab.fleet(&[1], directory.to_str().unwrap(), ""));
    let (outcome, why) = told(&done, &lab, 1);
    assert_eq!((done.exit, outcome), (253, "failed"), "{}", done.all);
    assert!(why.starts_with("the payload is corrupt"), "{why}");
    assert!(!done.events.iter().any(|event| event["step"] == "install"), "{}", done.all);
    assert_eq!(difference(&before, &lab.snapshot(1)), "");
}

/// On the box, at the import: no node has a part in it.
#[test]
fn a_cabinet_without_a_trusted_signature_is_not_imported() {
    let lab = Lab::up(1);
    let good = baseline(&lab, "good", &shipped("1.2.4"));
    let import = |path: &Path, trust: &[&str]| {
        run(lab.carena(&["cache", "import", "--unsigned-ok", path.to_str().unwrap(), "--json"]).args(trust))
    };
    // Debian's cabinets are signed by a certificate that LVFS's own vouches for.
    let trusted = ["--trust", "/etc/pki/fwupd/LVFS-CA.pem"];
    let done = import(&good, &trusted);
    assert_eq!(done.exit, 0, "{}", done.all);
    // Kept from now on. One without any signature, one whose jcat is of another payload, one with a byte changed.
    let unsigned = baseline(&lab, "unsigned", &cabinet_that_requires(&lab, ""));
    let swapped = format!(
        "cd {0} && gcab -x {SHIPPED}/fakedevice123.cab >/dev/null && cp *.jcat other && \
         gcab -x {SHIPPED}/fakedevice124.cab >/dev/null && for jcat in *.jcat; do cp other $jcat; done && \
         gcab -c swapped.cab fakedevice124.metainfo.xml fakedevice124.bin *.jcat",
        lab.dir().display()
    );
    assert!(std::process::Command::new("bash").args(["-c", &swapped]).status().unwrap().success());
    let swapped = std::fs::read(lab.dir().join("swapped.cab")).unwrap();
    let swapped = baseline(&lab, "swapped", &swapped);
    let begin =
        run(&mut lab.carena(&["deploy", lab.fleet(&[1], unsigned.to_str().unwrap(), "").to_str().unwrap()]));
    assert_eq!(begin.exit, 254, "{}", begin.all);
    assert!(begin.all.contains("signature") && begin.all.contains("w.metainfo.xml"), "{}", begin.all);
    for (directory, what) in [(&unsigned, "w.metainfo.xml"), (&swapped, "fakedevice124")] {
        let refused = import(directory, &[]);
        assert_eq!(refused.exit, 254, "{}", refused.all);
        assert!(refused.all.contains("signature") && refused.all.contains(what), "{}", refused.all);
        let alone = import(&directory.join("webcam.cab"), &[]);
        assert_eq!(alone.exit, 254, "{}", alone.all);
    }
    // As it was downloaded, with no manifest written by hand.
    let own = ["--id", "webcam"];
    let done = import(&Path::new(SHIPPED).join("fakedevice124.cab"), &own);
    assert_eq!(done.exit, 0, "{}", done.all);
    configure(&lab, 1, "");
    start_daemon(&lab, 1);
    let done = deploy(&lab, &lab.fleet(&[1], "webcam", ""));
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", done.all);
    assert_eq!(device_version(&lab, 1).as_deref(), Some("1.2.4"));
    let listed = run(&mut lab.carena(&["cache", "list"]));
    assert!(listed.all.contains("good@1"), "{}", listed.all);
    assert!(!listed.all.contains("unsigned@1") && !listed.all.contains("swapped@1"), "{}", listed.all);
}

/// It takes a program of the node's, so who needs nothing of it does not wait for it.
#[test]
fn a_baseline_without_cabinets_asks_fwupd_nothing() {
    let lab = Lab::up(1);
    lab.on_node(1, "printf '#!/bin/sh\\ntouch /var/lib/asked\\n' > /usr/bin/fwupdtool");
    let path = crate::deployment::baseline(&lab, "plain", "echo 2.0 > /var/lib/thing");
    let done = deploy(&lab, &lab.fleet(&[1], path.to_str().unwrap(), ""));
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", done.all);
    assert_eq!(lab.on_node(1, "ls /var/lib/asked 2>/dev/null"), "");
    let cabinet = baseline(&lab, "cabinet", &shipped("1.2.4"));
    let done = deploy(&lab, &lab.fleet(&[1], cabinet.to_str().unwrap(), ""));
    let (outcome, why) = told(&done, &lab, 1);
    assert_eq!(outcome, "not-applicable", "{}", done.all);
    assert!(why.contains("its answer is not understood"), "{why}");
    assert_eq!(lab.on_node(1, "ls /var/lib/asked"), "/var/lib/asked\n");
}

#[test]
fn the_inventory_shows_what_fwupd_lists() {
    let lab = Lab::up(2);
    configure(&lab, 1, "");
    lab.on_node(2, "rm -f /usr/bin/fwupdtool /usr/bin/fwupdmgr");
    let before = [1, 2].map(|k| lab.snapshot(k));
    let shown =
        run(&mut lab.carena(&["inventory", lab.fleet(&[1, 2], "demo", "").to_str().unwrap(), "--json"]));
    assert_eq!(shown.exit, 0, "{}", shown.all);
    let of = |k: usize| {
        let node = shown
            .events
            .iter()
            .find(|line| line["node"] == *lab.node_address(k) && !line["inventory"].is_null());
        node.unwrap_or_else(|| panic!("{}", shown.all))["inventory"].clone()
    };
    let devices = of(1)["fwupd"].clone();
    let webcam = devices.as_array().unwrap().iter().find(|device| device["guids"][0] == WEBCAM).unwrap();
    for (name, value) in [
        ("version", "1.2.2"),
        ("vendor", "ACME Corp."),
        ("plugin", "test"),
        ("version_format", "triplet"),
        ("bootloader_version", "0.1.2"),
    ] {
        assert_eq!(webcam[name], value, "{webcam}");
    }
    let unknown = of(2)["unknown"].clone();
    let fwupd = unknown.as_array().unwrap().iter().find(|unknown| unknown["what"] == "fwupd").unwrap();
    assert_eq!(fwupd["why"], "not installed");
    for (k, before) in [1, 2].into_iter().zip(before) {
        assert_eq!(difference(&before, &lab.snapshot(k)), "", "node {k}");
    }
}
