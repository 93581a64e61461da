//! The order of versions, with the tools that own each format as judges: rpm, dpkg, fwupdtool.

use std::cmp::Ordering;
use std::process::Command;

use carena::firmware::version::VersionFormat;

/// Every two of these are compared in both package formats.
const PACKAGES: [&str; 22] = [
    "1",
    "1.0",
    "1.0-1",
    "1.0-2",
    "1.0-10",
    "1.00-1",
    "1.0~rc1-1",
    "1.0~~-1",
    "1.0^git2-1",
    "1.0^-1",
    "1.0.1-1",
    "1.0a-1",
    "1.0+b1-1",
    "1.a-1",
    "1.10-1",
    "1.9-1",
    "2.0-0ubuntu1",
    "2.0-0.el9",
    "1:0.1-1",
    "0:1.0-1",
    "10:1-1",
    "20240101-1",
];

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rpm_agrees_with_our_order_of_its_versions() {
    let pairs: Vec<_> = PACKAGES.iter().flat_map(|a| PACKAGES.map(|b| (*a, b))).collect();
    let asked: Vec<_> =
        pairs.iter().map(|(a, b)| format!("print(rpm.vercmp('{a}', '{b}') .. ' ')")).collect();
    let said = said(Command::new("rpm").args(["--eval", &format!("%{{lua: {}}}", asked.join(" "))]));
    let orders: Vec<i8> = said.split_whitespace().map(|order| order.parse().unwrap()).collect();
    assert_eq!(orders.len(), pairs.len());
    for ((a, b), order) in pairs.iter().zip(orders) {
        assert_eq!(VersionFormat::Rpm.compare(a, b), Some(order.cmp(&0)), "{a} and {b}");
    }
}

#[test]
fn dpkg_agrees_with_our_order_of_its_versions() {
    let versions: Vec<_> = PACKAGES.iter().filter(|version| !version.contains('^')).collect();
    for (i, a) in versions.iter().enumerate() {
        for b in versions.iter().skip(i + 1) {
            let is = |relation| {
                Command::new("dpkg").args(["--compare-versions", a, relation, b]).status().unwrap().success()
            };
            let order = match (is("lt"), is("eq")) {
                (true, _) => Ordering::Less,
                (false, true) => Ordering::Equal,
                (false, false) => Ordering::Greater,
            };
            assert_eq!(VersionFormat::Deb.compare(a, b), Some(order), "{a} and {b}");
        }
    }
}

#[test]
fn fwupd_agrees_with_our_order_of_its_formats() {
    for (format, a, b) in [
        (VersionFormat::Triplet, "1.2.3", "1.2.10"),
        (VersionFormat::Quad, "1.2.3.4", "1.2.3.10"),
        (VersionFormat::Pair, "1.02", "1.2"),
        (VersionFormat::Number, "9", "11"),
        (VersionFormat::Hex, "ff", "100"),
        (VersionFormat::Plain, "A", "b"),
        (VersionFormat::Triplet, "2.0.0", "1.9.9"),
    ] {
        let told = said(Command::new("fwupdtool").args(["vercmp", a, b, &format.to_string()]));
        let sign = told.lines().last().and_then(|line| line.split(' ').nth(1).map(str::to_owned)).unwrap();
        let order = match sign.as_str() {
            "<" => Ordering::Less,
            "==" => Ordering::Equal,
            ">" => Ordering::Greater,
            _ => panic!("{told}"),
        };
        assert_eq!(format.compare(a, b), Some(order), "{a} and {b} as {format}");
    }
}
