//! Hostile ground: places that run no programs, too little room, a read-only root, other machines, wrong clocks and
//! security modules. Each has its answer before a byte is sent where that can be known; the other nodes go on.

use std::fmt::Write as _;
use std::process::Command;

use carena::deploy::authority::Authority;

use crate::deployment::deploy;
use crate::lab::{Lab, difference};

/// Mounts over each place: `over "PLACES" OPTIONS`.
const OVER: &str = "over() { for place in $1; do mount -t tmpfs -o mode=1777,$2 tmpfs $place; done; }; remount() { for place in $1; do mount -o remount,$2 $place; done; }\n";

/// A server below which programs run from the system's directories only: Landlock, a security module of the kernel.
const LANDLOCK: &str = r#"ip6tables -A INPUT -p tcp --dport 2222 -j ACCEPT
python3 - <<E
import ctypes, os, struct
call = ctypes.CDLL(None, use_errno=True).syscall
EXECUTE = 1
rules = call(444, struct.pack("Q", EXECUTE), 8, 0)
for place in ["/usr", "/etc"]:
    call(445, rules, 1, struct.pack("=Qi", EXECUTE, os.open(place, os.O_PATH)), 0)
assert call(446, rules, 0) == 0, os.strerror(ctypes.get_errno())
os.execv("/usr/sbin/sshd", ["/usr/sbin/sshd", "-p", "2222", "-o", "PermitRootLogin=yes", "-o", "PidFile=none"])
E"#;

struct Node {
    what: &'static str,
    setup: &'static str,
    port: u16,
    /// What its own messages say: of the place chosen, or why not.
    says: &'static [&'static str],
    done: bool,
}

const fn done(what: &'static str, setup: &'static str, says: &'static [&'static str]) -> Node {
    Node { what, setup, port: 22, says, done: true }
}

const fn refused(what: &'static str, setup: &'static str, says: &'static [&'static str]) -> Node {
    Node { what, setup, port: 22, says, done: false }
}

const NODES: &[Node] = &[
    done(
        "BusyBox for everything, and no boot time",
        "sed /^btime/d /proc/stat > /run/stat; mount --bind /run/stat /proc/stat; busybox --install -s /usr/local/sbin; ln -sf /usr/bin/busybox /bin/sh",
        &[", /var/tmp\"", "port 62286, ip6tables"],
    ),
    done("only /dev/shm", "remount '/var/tmp /tmp /run' noexec; over /dev/shm size=64m", &[", /dev/shm\""]),
    done(
        "only /run, and no uptime",
        "mount --bind /dev/null /proc/uptime; remount '/var/tmp /tmp' noexec; over /dev/shm noexec",
        &[", /run\""],
    ),
    done("only /tmp", "remount '/var/tmp /run' noexec; over /dev/shm noexec", &[", /tmp\""]),
    done("only /var/tmp", "remount '/tmp /run' noexec; over /dev/shm noexec", &[", /var/tmp\""]),
    done("the first is full", "over /var/tmp size=4m", &[", /tmp\""]),
    done("the first has no files left", "over /var/tmp nr_inodes=20", &[", /tmp\""]),
    done("a read-only root", "over /var/lib size=64m; mount -o remount,ro /", &[", /var/tmp\""]),
    done(
        "a wrong clock",
        "booted=$(sed -n 's/^btime //p' /proc/stat); sed \"s/^btime.*/btime $((booted - 180000))/\" /proc/stat > /run/stat; mount --bind /run/stat /proc/stat",
        &["the node's clock is 50 h behind the box's: set one of them right"],
    ),
    refused(
        "nowhere",
        "remount '/var/tmp /tmp /run' noexec; over /dev/shm noexec",
        &[
            "no directory on the node may hold a running program: /var/tmp is mounted noexec, /tmp is mounted noexec, /run is mounted noexec, /dev/shm is mounted noexec (mount one of them with exec",
        ],
    ),
    refused(
        "no room",
        "remount '/tmp /var/tmp /run' size=2m; over /dev/shm size=1m",
        &[" bytes are needed on the node, the roomiest place is ", " bytes free (free some room in "],
    ),
    refused(
        "no files",
        "remount '/tmp /var/tmp /run' nr_inodes=40; over /dev/shm nr_inodes=8",
        &[" files (inodes) are needed on the node, the roomiest place is ", " free (remove some files in "],
    ),
    Node {
        what: "a security module",
        setup: LANDLOCK,
        port: 2222,
        says: &[
            "the node does not let a program run in /var/tmp/carena-",
            "Permission denied",
            "SELinux, AppArmor or fapolicyd",
        ],
        done: false,
    },
    Node {
        what: "another machine",
        setup: "ip6tables -A INPUT -p tcp --dport 2222 -j ACCEPT; setarch i686 /usr/sbin/sshd -p 2222 -o PermitRootLogin=yes -o PidFile=none",
        port: 2222,
        says: &["the node is i686; this version has an engine for Linux on x86_64 only"],
        done: false,
    },
];

#[test]
fn every_ground_has_its_answer_and_the_other_nodes_go_on() {
    let lab = Lab::up(NODES.len());
    let mut text = String::from("baseline = \"demo\"\n");
    for (node, k) in NODES.iter().zip(1..) {
        lab.on_node(k, &format!("{OVER}{}", node.setup));
        let address = lab.node_address(k);
        writeln!(
            text,
            "[[node]]\naddress = \"{address}\"\nport = {}\nuser = \"root\"\nkey_file = \"id_ed25519\"",
            node.port
        )
        .unwrap();
    }
    let fleet = lab.dir().join("ground.toml");
    std::fs::write(&fleet, text).unwrap();
    let before: Vec<_> = (1..=NODES.len()).map(|k| lab.snapshot(k)).collect();
    let run = deploy(&lab, &fleet);
    assert_eq!(run.exit, 253, "{}", run.all);
    let mut wrong = Vec::new();
    for (node, k) in NODES.iter().zip(1..) {
        let address = lab.node_address(k);
        let own: String =
            run.all.lines().filter(|line| line.contains(&format!("\"node\":\"{address}\""))).collect();
        let summary = run.node(&lab, k);
        let right = if node.done { "done" } else { "failed" };
        if summary["result"] != right || !node.says.iter().all(|says| own.contains(says)) {
            wrong.push(format!("{}: {summary} {own}", node.what));
        }
        if !node.done && !summary["error"].as_str().unwrap_or_default().starts_with(&format!("{address}: ")) {
            wrong.push(format!("{}: the error does not name its node: {summary}", node.what));
        }
        lab.on_node(k, "rm -rf /var/lib/carena-demo");
        let left = difference(&before[k - 1], &lab.snapshot(k));
        if !left.is_empty() {
            wrong.push(format!("{}: something is left: {left}", node.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_deployments_certificates_hold_at_any_time_a_clock_may_show() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(&"0190-test".parse().unwrap(), 1).unwrap();
    let (ca, engine) = (directory.path().join("ca.pem"), directory.path().join("engine.pem"));
    std::fs::write(&ca, &authority.kept.ca_pem).unwrap();
    std::fs::write(&engine, &authority.kept.engine_certificate_pem).unwrap();
    // 1980 (a cleared clock), 2000, 2026, 2100, 2900.
    for seconds in ["315532800", "946684800", "1795000000", "4102444800", "29348006400"] {
        let judged = Command::new("openssl")
            .args(["verify", "-attime", seconds, "-CAfile"])
            .args([&ca, &engine])
            .output()
            .unwrap();
        assert!(judged.status.success(), "{seconds}: {}", String::from_utf8_lossy(&judged.stderr));
    }
}
