//! What is for which node and why not, on a real node: match rules, needs, conflicts, version formats, packages.

use std::process::Command;

use crate::lab::Lab;
use crate::operator::{Thing, baseline, besides, deploy};

fn thing<'a>(id: &'a str, extra: &'a str) -> Thing<'a> {
    Thing { extra, ..Thing::new(id, &format!("echo 2.0 > /var/lib/{id}\n")) }
}

#[test]
fn every_component_that_is_not_installed_says_why() {
    let lab = Lab::up(1);
    lab.on_node(1, "echo 1.9 > /var/lib/thing; echo unknown > /var/lib/odd; echo 1 > /var/lib/base");
    let needs = "needs = [{ version_of = { file = \"/var/lib/base\" }, at_least = \"2\" }]";
    let things = [
        thing("thing", "version_format = \"pair\""),
        thing("odd", "version_format = \"pair\""),
        thing("nic", "match = { pci = [\"8086:ffff:103c:0001\"] }"),
        thing("needy", needs),
        thing("rival", "conflicts = [\"thing\"]"),
        thing("absent", "only_if_installed = true"),
        Thing { read_back: "\"bmc\"".into(), ..thing("bmc", "") },
        // A file that is a directory: it can be opened, not read.
        Thing { read_back: "{ file = \"/etc\" }".into(), ..thing("unreadable", "") },
    ];
    let path = baseline(&lab, "reasons", &things);
    let before = besides(&lab.snapshot(1), &["thing"]);
    let done = deploy(&lab, &lab.fleet(&[1], path.to_str().unwrap(), ""));
    assert_eq!(done.exit, 253, "{}", done.all);
    let told: Vec<(&str, &str, &str)> = done.node(&lab, 1)["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| {
            let text = |name: &str| component[name].as_str().unwrap_or_default();
            (text("id"), text("outcome"), text("why"))
        })
        .collect();
    let why =
        |id: &str| told.iter().find(|(other, ..)| *other == id).map(|(_, outcome, why)| (*outcome, *why));
    assert_eq!(why("thing"), Some(("updated", "")), "{}", done.all);
    let odd = "unknown is installed, which has no order with 2.0 among pair versions";
    assert_eq!(why("odd"), Some(("failed", odd)));
    let nic = "for PCI device 8086:ffff:103c:0001, the node has none of it";
    assert_eq!(why("nic"), Some(("not-applicable", nic)));
    let needy = "needs the version in /var/lib/base 2 or newer, and 1 is there";
    assert_eq!(why("needy"), Some(("skipped", needy)));
    assert_eq!(why("rival"), Some(("skipped", "conflicts with thing, which is in place")));
    let absent = "the node does not have the version in /var/lib/absent";
    assert_eq!(why("absent"), Some(("not-applicable", absent)));
    assert_eq!(why("bmc"), Some(("not-applicable", "the node does not have the BMC's firmware")));
    let (outcome, unreadable) = why("unreadable").unwrap();
    assert_eq!(outcome, "failed");
    assert!(unreadable.starts_with("the installed version is not known: "), "{unreadable}");
    assert_eq!(besides(&lab.snapshot(1), &["thing"]), before);
}

#[test]
fn a_package_is_installed_by_the_nodes_tool_and_read_back_from_it() {
    let lab = Lab::up(1);
    let package = |version: &str| {
        let tree = lab.dir().join("package");
        std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: carena-test-firmware\nVersion: {version}\nArchitecture: all\n\
             Maintainer: nobody <nobody@example.org>\nDescription: test\n"
        );
        std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let built = lab.dir().join("built.deb");
        let done =
            Command::new("dpkg-deb").args(["-b", "--root-owner-group"]).arg(&tree).arg(&built).output();
        assert!(done.unwrap().status.success());
        std::fs::read(built).unwrap()
    };
    let directory = baseline(
        &lab,
        "package",
        &[Thing {
            payload: package("2.0"),
            read_back: "{ package = \"carena-test-firmware\" }".into(),
            ..thing("firmware", "version_format = \"deb\"")
        }],
    );
    let manifest = std::fs::read_to_string(directory.join("baseline.toml")).unwrap();
    let manifest = manifest.replace("[\"/bin/sh\", \"{payload}\"]", "[\"dpkg\", \"-i\", \"{payload}\"]");
    std::fs::write(directory.join("baseline.toml"), manifest).unwrap();
    let fleet = lab.fleet(&[1], directory.to_str().unwrap(), "");

    let first = deploy(&lab, &fleet);
    assert_eq!((first.exit, first.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", first.all);
    let told = "dpkg-query -W -f '${db:Status-Status} ${Version}' carena-test-firmware";
    assert_eq!(lab.on_node(1, told), "installed 2.0");
    let second = deploy(&lab, &fleet);
    assert_eq!((second.exit, second.outcomes(&lab, 1)), (3, vec!["current"]), "{}", second.all);
    // A version that is before, by Debian's order alone.
    lab.on_node(
        1,
        "sed -i '/^Package: carena-test-firmware/,/^$/s/^Version: .*/Version: 2.0~rc1/' /var/lib/dpkg/status",
    );
    let third = deploy(&lab, &fleet);
    assert_eq!((third.exit, third.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", third.all);
    assert_eq!(third.node(&lab, 1)["components"][0]["from"], "2.0~rc1");
}
