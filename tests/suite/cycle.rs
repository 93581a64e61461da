//! The promise, on real nodes: what is installed is what the baseline says, and every node is left as it was found,
//! whatever happens in between.

use crate::deployment::{baseline, deploy, run};
use crate::lab::Lab;

/// What a node has apart from the demonstration's own directory.
fn apart_from_demo(lab: &Lab, k: usize) -> String {
    let snapshot = lab.snapshot(k);
    let kept = snapshot.lines().filter(|line| !line.contains("/var/lib/carena-demo"));
    kept.map(|line| format!("{line}\n")).collect()
}

/// The same work on every node, a few at a time.
fn on_all<T: Send>(nodes: &[usize], work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    const AT_ONCE: usize = 8;
    let mut done = Vec::new();
    for some in nodes.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let tasks: Vec<_> = some.iter().map(|k| scope.spawn(|| work(*k))).collect();
            done.extend(tasks.into_iter().map(|task| task.join().unwrap()));
        });
    }
    done
}

/// The demonstration on `count` nodes: all updated, all as found.
fn demonstrate(count: usize) -> (Lab, std::path::PathBuf) {
    let lab = Lab::up(count);
    let nodes: Vec<usize> = (1..=count).collect();
    let before = on_all(&nodes, |k| lab.snapshot(k));
    let fleet = lab.fleet(&nodes, "demo", "");
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}", done.all);
    for k in &nodes {
        assert_eq!(done.component(&lab, *k)["outcome"], "updated", "node {k}");
        assert_eq!(done.node(&lab, *k)["outstanding_traces"], serde_json::json!([]), "node {k}");
    }
    let after =
        on_all(&nodes, |k| (apart_from_demo(&lab, k), lab.on_node(k, "cat /var/lib/carena-demo/version")));
    for (k, (before, (after, version))) in nodes.iter().zip(before.iter().zip(&after)) {
        assert_eq!(version, "1.2.0\n", "node {k}");
        assert_eq!(after, before, "node {k}");
    }
    (lab, fleet)
}

#[test]
fn eight_nodes_are_updated_and_left_as_found() {
    let (lab, fleet) = demonstrate(8);
    let again = deploy(&lab, &fleet);
    assert_eq!(again.exit, 3, "nothing is needed a second time: {}", again.all);
}

/// As many logins at once as one box begins: sshd's limits and the store's batches are met.
#[test]
fn sixty_four_nodes_are_updated_and_left_as_found() {
    demonstrate(64);
}

#[test]
fn a_failing_installer_is_a_failure_and_leaves_nothing() {
    let lab = Lab::up(2);
    let before = [lab.snapshot(1), lab.snapshot(2)];
    let failing = baseline(&lab, "failing", "echo no such device; exit 7");
    let done = deploy(&lab, &lab.fleet(&[1, 2], failing.to_str().unwrap(), ""));
    assert_eq!(done.exit, 253, "{}", done.all);
    let component = done.component(&lab, 1);
    assert_eq!(component["outcome"], "failed");
    assert!(component["why"].as_str().unwrap().contains("exit code 7: no such device"), "{component}");

    let lying = baseline(&lab, "lying", "true");
    let done = deploy(&lab, &lab.fleet(&[1], lying.to_str().unwrap(), ""));
    assert_eq!(done.component(&lab, 1)["outcome"], "unverified", "{}", done.all);
    assert_eq!(done.exit, 253);
    assert_eq!([lab.snapshot(1), lab.snapshot(2)], before);
}

/// Nothing is begun with a baseline that cannot be carried out: one message with the file, the line where there is
/// one, and what to do.
#[test]
fn a_baseline_that_cannot_be_used_is_refused_with_its_file_before_any_node_is_touched() {
    let lab = Lab::up(1);
    let before = lab.snapshot(1);
    let bad = baseline(&lab, "bad", "true");
    let fleet = lab.fleet(&[1], bad.to_str().unwrap(), "");
    let manifest = std::fs::read_to_string(bad.join("baseline.toml")).unwrap();
    let refused = |said: &[&str]| {
        let done = deploy(&lab, &fleet);
        assert_eq!(done.exit, 254, "{}", done.all);
        assert_eq!(done.all.matches("carena: ").count(), 1, "one message: {}", done.all);
        for said in said {
            assert!(done.stderr.contains(said), "{said} in {}", done.stderr);
        }
    };
    std::fs::write(bad.join("baseline.toml"), manifest.replace("expected_s", "expectd_s")).unwrap();
    let place = format!("{}:", bad.join("baseline.toml").display());
    refused(&[&place, "unknown field `expectd_s`", "no node was touched"]);

    std::fs::write(bad.join("baseline.toml"), manifest).unwrap();
    std::fs::remove_file(bad.join("payload")).unwrap();
    refused(&[bad.join("payload").to_str().unwrap(), "No such file", "no node was touched"]);

    let unknown = run(&mut lab.carena(&["deploy", lab.fleet(&[1], "nope", "").to_str().unwrap()]));
    assert_eq!(unknown.exit, 254, "{}", unknown.all);
    assert!(unknown.stderr.contains("there is no baseline \"nope\""));
    assert_eq!(lab.snapshot(1), before);
}

/// Logins that fail are in every administrator's list of suspects, so each says which node and why, and stops none
/// of the others.
#[test]
fn bad_nodes_are_told_in_one_message_and_the_others_are_done() {
    let lab = Lab::up(2);
    let fleet = lab.fleet(&[1, 2], "demo", "");
    std::fs::write(lab.dir().join("wrong.secret"), "not the password\n").unwrap();
    let mut text = std::fs::read_to_string(&fleet).unwrap();
    text = text.replacen("op.secret", "wrong.secret", 1);
    let bad = [("no-such-host.invalid", ""), ("fd00:ca::1", "port = 2222\n"), ("fd00:ca::zz", "")];
    for (address, rest) in bad {
        text.push_str(&format!(
            "[[node]]\naddress = \"{address}\"\nuser = \"root\"\nkey_file = \"id_ed25519\"\n{rest}"
        ));
    }
    std::fs::write(&fleet, text).unwrap();
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 253, "{}", done.all);
    for (address, said) in [
        ("fd00:ca::11", "fd00:ca::11: connect: user operator was not let in"),
        ("no-such-host.invalid", "no-such-host.invalid: connect: no-such-host.invalid is not known"),
        ("fd00:ca::1", "port 2222 of fd00:ca::1 is closed"),
        ("fd00:ca::zz", "address \"fd00:ca::zz\": it is neither an IPv6 nor an IPv4 address"),
    ] {
        let node = &done.summary["nodes"][address];
        assert_eq!(node["result"], "failed");
        let error = node["error"].as_str().unwrap();
        assert!(error.contains(said), "{said} in {error}");
    }
    assert_eq!(lab.on_node(2, "cat /var/lib/carena-demo/version"), "1.2.0\n");
}

#[test]
fn a_changed_host_key_stops_the_node_with_both_fingerprints() {
    let lab = Lab::up(2);
    let fleet = lab.fleet(&[1, 2], "demo", "");
    assert_eq!(deploy(&lab, &fleet).exit, 0);
    let key = "/etc/ssh/ssh_host_ed25519_key";
    let fingerprint = || {
        let told = lab.on_node(2, &format!("ssh-keygen -l -f {key}"));
        told.split(' ').nth(1).unwrap().to_owned()
    };
    let old = fingerprint();
    lab.on_node(2, &format!("rm {key}; ssh-keygen -q -t ed25519 -N \"\" -f {key}; kill -HUP 1"));
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 253, "{}", done.all);
    let error = done.node(&lab, 2)["error"].as_str().unwrap();
    for said in ["the host key has changed", &old, &fingerprint()] {
        assert!(error.contains(said), "{said} in {error}");
    }
    assert_eq!(done.node(&lab, 1)["result"], "done", "the other node is not held up");
}

/// What the engine reads without any tool is what the tools say.
#[test]
fn the_inventory_is_what_independent_tools_say() {
    let lab = Lab::up(1);
    let fleet = lab.fleet(&[1], "demo", "");
    let told = run(&mut lab.carena(&["inventory", fleet.to_str().unwrap(), "--json"]));
    assert_eq!(told.exit, 0, "{}", told.all);
    let mut lines = told.all.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let inventory = lines.find(|line| line["inventory"].is_object()).unwrap()["inventory"].clone();
    let says = |command: &str| lab.on_node(1, command).trim_end().to_owned();
    let or_empty = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();

    for (field, command) in [
        ("kernel", "uname -r"),
        ("arch", "uname -m"),
        ("host", "uname -n"),
        ("id", ". /etc/os-release; echo $ID"),
        ("version", ". /etc/os-release; echo $VERSION_ID"),
        ("name", ". /etc/os-release; echo $PRETTY_NAME"),
    ] {
        assert_eq!(or_empty(&inventory["os"][field]), says(command), "{field}");
    }
    for (field, file) in
        [("vendor", "sys_vendor"), ("product", "product_name"), ("bios_version", "bios_version")]
    {
        let command = format!("cat /sys/class/dmi/id/{file} 2>/dev/null");
        assert_eq!(or_empty(&inventory["dmi"][field]), says(&command).trim(), "{field}");
    }
    let functions: Vec<String> = inventory["pci"].as_array().unwrap().iter().map(pci_line).collect();
    assert_eq!(functions.join("\n"), says("lspci -Dn | sed -e 's/ (.*//' | sort"));
    let network = inventory["network"].as_array().unwrap();
    let eth0 = network.iter().find(|interface| interface["name"] == "eth0").unwrap();
    let ethtool = |key: &str| says(&format!("ethtool -i eth0 | sed -n 's/^{key}: //p'"));
    assert_eq!(or_empty(&eth0["driver"]), ethtool("driver"));
    assert_eq!(or_empty(&eth0["driver_version"]), ethtool("version"));
    assert_eq!(or_empty(&eth0["firmware_version"]), ethtool("firmware-version"));
    assert_eq!(or_empty(&eth0["mac"]), says("ip -o link show eth0 | sed -e 's/.*ether //' -e 's/ .*//'"));
    let disks: Vec<String> = inventory["disks"].as_array().unwrap().iter().map(disk_line).collect();
    let listed = says("lsblk -dnbo NAME,SIZE | awk '$1 ~ /^(sd|nvme)/ { print $1, $2 }' | sort");
    assert_eq!(disks.join("\n"), listed);
}

/// As `lspci -Dn` writes it, without the revision.
fn pci_line(function: &serde_json::Value) -> String {
    let text = |field: &str| function[field].as_str().unwrap().to_owned();
    format!("{} {}: {}:{}", text("address"), &text("class")[..4], text("vendor"), text("device"))
}

/// As `lsblk -bo NAME,SIZE` writes it.
fn disk_line(disk: &serde_json::Value) -> String {
    format!("{} {}", disk["name"].as_str().unwrap(), disk["bytes"])
}
