//! Makers' packages on real nodes, without a manifest written by hand: imported, planned, installed by their own installers
//! or the node's package tool, and read back. HPE's and Dell's installers are scripts of this test's that do as theirs
//! do: they unpack themselves, log, and end with their makers' exit codes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::formats::{bash, catalogue, tool, vendors};
use crate::lab::Lab;
use crate::operator::{Run, besides, deploy, run};

const HPE: &[(&str, &str)] = &[
    ("sys_vendor", "HP"),
    ("product_name", "ProLiant DL380 Gen9"),
    ("bios_vendor", "HP"),
    ("bios_version", "P89"),
    ("bios_release", "2.50"),
    ("bios_date", "01/22/2018"),
];

const DELL: &[(&str, &str)] = &[
    ("sys_vendor", "Dell Inc."),
    ("product_name", "PowerEdge R730"),
    ("product_sku", "SKU=NotProvided;ModelName=PowerEdge R730"),
    ("bios_vendor", "Dell Inc."),
    ("bios_version", "1.39.0"),
];

/// What an installer leaves because it is the installation: its maker's log, and the firmware itself.
const OWN: &[&str] = &["/var/cpq", "/var/log/dell", "/var/lib/flashed"];

fn settled(lab: &Lab, k: usize) -> String {
    let snapshot = besides(&lab.snapshot(k), &[]);
    let own = |line: &str| OWN.iter().any(|path| line.starts_with(path)) || line.starts_with("overlay / ");
    snapshot.lines().filter(|line| !own(line)).map(|line| format!("{line}\n")).collect()
}

/// A smart component: unpacks itself to where it is told, and does what `flash` says.
fn scexe(directory: &Path, name: &str, title: &str, version: &str, flash: &str) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    let xml = format!(
        "<cpq_package><filename>{name}.scexe</filename><products><product rom=\"P89\"/></products>\
         <id product=\"id-{name}\"/><name><name_xlate lang=\"en\">{title}</name_xlate></name>\
         <version value=\"{version}\" revision=\"A\"/><installation><reboot_required value=\"yes\"/></installation></cpq_package>"
    );
    let head = "#!/bin/bash\nunpacked=$(mktemp -d \"${TMPDIR:-/tmp}/scexe.XXXXXX\")\n\
        trap 'rm -rf \"$unpacked\"' EXIT\nsed '1,/^#ARCHIVE$/d' \"$0\" | tar xzf - -C \"$unpacked\" || exit 6\n\
        mkdir -p /var/cpq\nlog=/var/cpq/Component.log\necho \"unpacked in $unpacked, told $*\" >>$log\n\
        . \"$unpacked/flash\"\nexit\n#ARCHIVE\n";
    let work = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(work.path().join(file), text).unwrap();
    write(&format!("{name}.xml"), &xml);
    write("flash", flash);
    write("head", head);
    bash(work.path(), &format!("tar czf body flash {name}.xml; cat head body > component"));
    let path = directory.join(format!("{name}.scexe"));
    std::fs::copy(work.path().join("component"), &path).unwrap();
    path
}

/// What a Dell Update Package is and needs.
struct Dup<'a> {
    name: &'a str,
    /// `FRMW` or `BIOS`.
    kind: &'a str,
    version: &'a str,
    component: &'a str,
    /// This version of the same component first.
    needs: Option<&'a str>,
    flash: &'a str,
}

fn dup(directory: &Path, told: &Dup<'_>) {
    std::fs::create_dir_all(directory).unwrap();
    let Dup { name, kind, version, component, needs, flash } = told;
    let needs = needs.map_or_else(String::new, |version| {
        format!(
            "<Dependencies><Dependency componentID=\"{component}\" version=\"{version}\"/></Dependencies>"
        )
    });
    let xml = format!(
        "<SoftwareComponent packageID=\"{name}\" vendorVersion=\"{version}\" rebootRequired=\"true\">\
         <Name><Display lang=\"en\">Something {name}</Display></Name><ComponentType value=\"{kind}\"/>\
         <SupportedDevices><Device componentID=\"{component}\"><Display lang=\"en\">x</Display></Device></SupportedDevices>\
         <SupportedSystems><Brand><Model systemID=\"0627\"><Display lang=\"en\">R730</Display></Model></Brand></SupportedSystems>\
         {needs}</SoftwareComponent>"
    );
    let head = "#!/bin/bash\nunpacked=$(mktemp -d \"${TMPDIR:-/tmp}/.dell.XXXXXX\")\n\
        trap 'rm -rf \"$unpacked\"' EXIT\n\
        sed '1,/^#####Startofarchive#####$/d' \"$0\" | tar xzf - -C \"$unpacked\" || exit 1\n\
        log=/var/log/dell/$(basename \"$unpacked\").log\nmkdir -p /var/log/dell\n\
        . \"$unpacked/flash\"\nexit\n";
    let work = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(work.path().join(file), text).unwrap();
    write("package.xml", &xml);
    write("flash", flash);
    write("head", head);
    bash(
        work.path(),
        "tar czf body flash package.xml; { cat head; echo '#####Startofpackage#####'; cat package.xml; echo; \
         echo '#####Startofarchive#####'; cat body; } > package",
    );
    std::fs::copy(work.path().join("package"), directory.join(format!("{name}.BIN"))).unwrap();
}

/// Imports packages; the line that tells of the baseline.
fn import(lab: &Lab, arguments: &[&str]) -> Value {
    let mut all = vec!["cache", "import", "--unsigned-ok", "--json"];
    all.extend(arguments);
    let done = run(&mut lab.carena(&all));
    assert_eq!(done.exit, 0, "{}", done.all);
    done.events.into_iter().find(|event| event.get("baseline").is_some()).unwrap()
}

/// Imports a directory of packages and deploys the baseline that was made of it.
fn deployed(lab: &Lab, directory: &Path, k: usize, options: &str) -> Run {
    let made = import(lab, &[directory.to_str().unwrap()]);
    assert!(made["signature"].to_string().contains("of makers' packages"), "{made}");
    deploy(lab, &lab.fleet(&[k], made["baseline"].as_str().unwrap(), options))
}

/// Outcome and reason of each component.
fn told(lab: &Lab, done: &Run, k: usize) -> BTreeMap<String, (String, String)> {
    let components = done.node(lab, k)["components"].as_array().unwrap();
    let text = |component: &Value, name: &str| component[name].as_str().unwrap_or_default().to_owned();
    let one = |component| (text(component, "id"), (text(component, "outcome"), text(component, "why")));
    components.iter().map(one).collect()
}

fn log<'a>(lab: &Lab, done: &'a Run, k: usize, id: &str) -> &'a str {
    let components = done.node(lab, k)["components"].as_array().unwrap();
    let found = components.iter().find(|component| component["id"] == id).unwrap();
    found["log"].as_str().unwrap_or_default()
}

#[test]
fn each_exit_code_of_a_smart_component_leads_to_its_outcome_and_a_failure_brings_its_log() {
    let lab = Lab::of_machines(1, HPE);
    let packages = lab.dir().join("components");
    for code in [0, 1, 2, 3, 4, 5, 6, 7, 9] {
        let flash = format!("echo \"reason {code}\" >>$log; echo said {code}; exit {code}");
        scexe(&packages, &format!("cp00000{code}"), &format!("Thing {code}"), "1.2", &flash);
    }
    let before = settled(&lab, 1);
    let done = deployed(&lab, &packages, 1, "reboot = \"never\"");
    assert_eq!(done.exit, 253, "{}", done.all);
    let told = told(&lab, &done, 1);
    for (code, outcome, why) in [
        (0, "updated-unverified", "success; the device's driver tells another version"),
        (1, "updated-reboot-needed", ""),
        (2, "current-unverified", "the installer says that 1.2(A) needs no installing"),
        (3, "failed", "exit code 3, which means that it failed, or that it is older"),
        (4, "failed", "exit code 4, its target was not found"),
        (5, "failed", "exit code 5, it was cancelled"),
        (6, "failed", "exit code 6, a dependency"),
        (7, "failed", "exit code 7, the installation itself failed: said 7"),
        (9, "failed", "exit code 9: said 9"),
    ] {
        let id = format!("cp00000{code}");
        let (found, reason) = &told[&id];
        assert_eq!(found, outcome, "{id}: {reason}");
        assert!(reason.contains(why), "{id}: {reason}");
        if outcome == "failed" {
            let log = log(&lab, &done, 1, &id);
            assert!(log.contains("[/var/cpq/Component.log on the node, its end]"), "{log}");
            assert!(log.contains(&format!("reason {code}\n")), "{log}");
        }
    }
    // It unpacked itself into a directory of the engine's, which is gone, and was told to be silent and not to force.
    let log = lab.on_node(1, "cat /var/cpq/Component.log");
    assert!(log.lines().filter(|line| line.ends_with("told -s")).count() == 9, "{log}");
    let unpacked = log.split_whitespace().nth(2).unwrap().trim_end_matches(',');
    assert!(unpacked.contains("/work/scexe.") && !unpacked.starts_with("/tmp/scexe"), "{unpacked}");
    assert_eq!(settled(&lab, 1), before);
}

#[test]
fn each_exit_code_of_a_dell_update_package_leads_to_its_outcome_and_a_log_it_names_is_brought() {
    let lab = Lab::of_machines(1, DELL);
    let packages = lab.dir().join("packages");
    for code in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 18, 19] {
        let flash = format!("echo \"reason {code} $*\" >$log; echo \"See $log for more.\"; exit {code}");
        let (name, component) = (format!("P{code:04}"), format!("{}", 1000 + code));
        let told = Dup {
            name: &name,
            kind: "FRMW",
            version: "2.1.0",
            component: &component,
            needs: None,
            flash: &flash,
        };
        dup(&packages, &told);
    }
    let before = settled(&lab, 1);
    let done = deployed(&lab, &packages, 1, "reboot = \"never\"");
    assert_eq!(done.exit, 253, "{}", done.all);
    let told = told(&lab, &done, 1);
    for (code, outcome, why) in [
        (0, "updated-unverified", "the device's driver tells another version than Dell's package does"),
        (1, "failed", "exit code 1, an error occurred during the update"),
        (2, "updated-reboot-needed", ""),
        (3, "current-unverified", "the installer says that 2.1.0 needs no installing"),
        (
            4,
            "skipped",
            "a prerequisite is not met, or no device that it is for was found; see its log: See /var",
        ),
        (5, "not-applicable", "the installer says so"),
        (6, "updated-reboot-needed", ""),
        (7, "failed", "BIOS password"),
        (8, "failed", "a downgrade is not allowed"),
        (9, "failed", "could not be verified"),
        (11, "failed", "exit code 11: See /var/log/dell/"),
        (13, "updated-unverified", "success"),
        (14, "updated-reboot-needed", ""),
        (15, "updated-power-cycle-needed", "switched off and on"),
        (16, "updated-power-cycle-needed", "switched off and on"),
        (18, "updated-power-cycle-needed", "AC power"),
        (19, "updated-power-cycle-needed", "AC power"),
    ] {
        let id = format!("p{code:04}");
        let (found, reason) = &told[&id];
        assert_eq!(found, outcome, "{id}: {reason}");
        assert!(reason.contains(why), "{id}: {reason}");
        if matches!(outcome, "failed" | "skipped") {
            let log = log(&lab, &done, 1, &id);
            assert!(log.contains(&format!("reason {code} -q\n")), "{log}");
        }
    }
    assert_eq!(settled(&lab, 1), before);
}

/// As Dell's BIOS packages do: writes, and the machine has it at its next start; refuses what comes too early.
fn bios(version: &str, first: &str) -> String {
    format!(
        "now=$(cat /sys/class/dmi/id/bios_version)\n\
         if [ \"$(printf '%s\\n' {first} \"$now\" | sort -V | head -n 1)\" != {first} ]; then echo \"$now is too old\"; exit 4; fi\n\
         echo {version} >/var/lib/flashed/bios_version; echo \"$now {version}\" >>/var/lib/flashed/history; exit 2\n"
    )
}

#[test]
fn prerequisites_that_packages_name_are_hops_with_restarts_between() {
    let lab = Lab::of_machines(1, DELL);
    let packages = lab.dir().join("chain");
    for (name, version, needs) in
        [("NEW", "2.1.0", Some("1.40.0")), ("MIDDLE", "1.40.0", None), ("OLD", "1.38.0", None)]
    {
        let flash = bios(version, needs.unwrap_or("0"));
        dup(&packages, &Dup { name, kind: "BIOS", version, component: "159", needs, flash: &flash });
    }
    let made = import(&lab, &[packages.to_str().unwrap()]);
    assert_eq!(made["components"], serde_json::json!(["middle", "new"]));
    let left_out = made["left_out"][0].as_str().unwrap();
    assert!(left_out.starts_with("old: ") && left_out.ends_with("which is newer than 1.38.0"), "{left_out}");
    let fleet = lab.fleet(&[1], "chain", "");
    let dry = run(&mut lab.carena(&["deploy", fleet.to_str().unwrap(), "--json", "--dry-run"]));
    assert!(dry.all.contains("in hop 2, once middle is active"), "{}", dry.all);
    let done = deploy(&lab, &fleet);
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated", "updated"]), "{}", done.all);
    let restarts = done.events.iter().filter(|event| event["step"] == "return" && event["state"] == "done");
    assert_eq!(restarts.count(), 2, "{}", done.all);
    assert_eq!(lab.on_node(1, "cat /var/lib/flashed/history"), "1.39.0 1.40.0\n1.40.0 2.1.0\n");
    let components = &done.node(&lab, 1)["components"];
    assert_eq!((&components[1]["from"], &components[1]["to"]), (&"1.40.0".into(), &"2.1.0".into()));
    let again = deploy(&lab, &fleet);
    assert_eq!(
        (again.exit, again.outcomes(&lab, 1)),
        (3, vec!["newer-installed", "current"]),
        "{}",
        again.all
    );
}

#[test]
fn a_system_rom_is_written_with_its_progress_told_and_read_back_after_the_restart() {
    let lab = Lab::of_machines(1, HPE);
    let packages = lab.dir().join("rom");
    let flash = "for i in 10 45 46 47; do printf '%s%%\\r' $i; sleep 0.7; done\n\
        echo 3.30 >/var/lib/flashed/bios_release; echo 09/21/2023 >/var/lib/flashed/bios_date; exit 1";
    scexe(&packages, "cp054321", "Online ROM Flash - DL380 Gen9 (P89)", "3.30_09-21-2023", flash);
    let before = settled(&lab, 1);
    let done = deployed(&lab, &packages, 1, "");
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", done.all);
    let component = done.component(&lab, 1);
    assert_eq!(component["from"], "P89 v2.50 (01/22/2018)");
    assert_eq!(component["to"], "P89 v3.30 (09/21/2023)");
    let percent = |event: &Value| event["percent"].as_u64();
    let said: Vec<u64> = done.events.iter().filter_map(percent).collect();
    assert!(said.iter().any(|percent| (45..=47).contains(percent)), "{said:?}");
    assert!(said.is_sorted(), "{said:?}");
    assert_eq!(settled(&lab, 1), before);
    // Again, an older one is written when it is wanted, and only then by force.
    lab.on_node(1, "rm /var/cpq/Component.log");
    let older = lab.dir().join("older");
    let flash = "[ \"$2\" = -f ] || exit 3; echo 2.80 >/var/lib/flashed/bios_release; exit 1";
    scexe(&older, "cp044444", "Online ROM Flash - DL380 Gen9 (P89)", "2.80_09-21-2023", flash);
    let kept = deployed(&lab, &older, 1, "");
    assert_eq!((kept.exit, kept.outcomes(&lab, 1)), (3, vec!["newer-installed"]), "{}", kept.all);
    let fleet = lab.fleet(&[1], "older", "mode = \"downgrade\"");
    let back = deploy(&lab, &fleet);
    assert_eq!((back.exit, back.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", back.all);
    assert!(lab.on_node(1, "cat /var/cpq/Component.log").ends_with("told -s -f\n"));
}

#[test]
fn what_an_installer_leaves_running_in_its_directory_is_waited_for_before_that_is_taken_away() {
    let lab = Lab::of_machines(1, HPE);
    let packages = lab.dir().join("orphan");
    // Needs what was unpacked until its end, and has left its parent, its session and its output.
    let flash = "cp /bin/sleep \"$TMPDIR/flash\"\n\
        (cd \"$TMPDIR\"; setsid sh -c './flash 3; ls flash >/var/cpq/left 2>&1; cat ../busy >/var/cpq/busy; echo $$ >/var/cpq/pid' \
        </dev/null >/dev/null 2>&1 &)\n exit 0";
    scexe(&packages, "cp000001", "Thing", "1.2", flash);
    let before = settled(&lab, 1);
    let done = deployed(&lab, &packages, 1, "");
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated-unverified"]), "{}", done.all);
    assert_eq!(lab.on_node(1, "cat /var/cpq/left"), "flash\n");
    // Whoever would end the engine is told of the process that still works.
    let (busy, pid) = (lab.on_node(1, "cat /var/cpq/busy"), lab.on_node(1, "cat /var/cpq/pid"));
    assert!(busy.lines().any(|line| line.split(' ').next() == Some(pid.trim())), "{busy}: {pid}");
    assert_eq!(settled(&lab, 1), before);
}

#[test]
fn an_installer_that_is_killed_leaves_nothing_of_what_it_has_unpacked() {
    let lab = Lab::of_machines(1, HPE);
    let packages = lab.dir().join("killed");
    scexe(&packages, "cp000001", "Thing", "1.2", "echo \"half way\" >>$log; kill -9 $$; sleep 60");
    let before = settled(&lab, 1);
    let done = deployed(&lab, &packages, 1, "");
    assert_eq!(done.exit, 253, "{}", done.all);
    let (outcome, why) = &told(&lab, &done, 1)["cp000001"];
    assert_eq!((outcome.as_str(), why.as_str()), ("failed", "the installer was ended by signal 9"));
    assert!(log(&lab, &done, 1, "cp000001").contains("half way"));
    let unpacked = lab.on_node(1, "cut -d' ' -f3 /var/cpq/Component.log | head -n 1");
    let unpacked = unpacked.trim().trim_end_matches(',');
    assert!(unpacked.contains("/scexe."), "{unpacked}");
    assert_eq!(lab.on_node(1, &format!("ls -d {unpacked} 2>&1 | grep -c 'No such'")), "1\n");
    assert_eq!(settled(&lab, 1), before);
}

/// Debian's rpm wants to be told that it is meant, and its node is to be one of rpm's.
const RPM_NODE: &str = r#"rm -f /etc/os-release
printf 'ID=rhel\nVERSION_ID=9.4\n' >/etc/os-release
printf '#!/bin/sh\nexport HOME=/root\ncase $1 in -U) shift; exec /usr/bin/rpm --force-debian -U "$@";; *) exec /usr/bin/rpm "$@";; esac\n' >/usr/local/sbin/rpm
chmod 755 /usr/local/sbin/rpm; /usr/local/sbin/rpm --initdb"#;

fn rpm(directory: &Path, [name, version, header]: [&str; 3], body: &str) {
    let spec = format!(
        "Name: {name}\nVersion: {version}\nRelease: 1\nSummary: test\nLicense: none\nBuildArch: noarch\n\
         AutoReqProv: no\n{header}%description\ntest\n{body}"
    );
    std::fs::create_dir_all(directory).unwrap();
    let work = tempfile::tempdir().unwrap();
    std::fs::write(work.path().join("a.spec"), spec).unwrap();
    let top = format!("_topdir {}", work.path().display());
    tool(work.path(), "rpmbuild", &["--quiet", "-bb", "--define", &top, "a.spec"]);
    bash(work.path(), &format!("cp RPMS/noarch/*.rpm {}/", directory.display()));
}

#[test]
fn packages_of_both_kinds_are_installed_by_the_node_that_has_their_tool() {
    let lab = Lab::up(2);
    lab.on_node(2, RPM_NODE);
    let packages = lab.dir().join("packages");
    let files = "%install\nmkdir -p %{buildroot}/var/lib/blob; echo 2 >%{buildroot}/var/lib/blob/fw\n%files\n/var/lib/blob\n";
    rpm(&packages, ["carena-test-blob", "2.0", ""], files);
    let package = lab.dir().join("package");
    std::fs::create_dir_all(package.join("DEBIAN")).unwrap();
    let control = "Package: carena-test-firmware\nVersion: 1:2.0-1\nArchitecture: all\n\
        Maintainer: nobody <nobody@example.org>\nDescription: test\n";
    std::fs::write(package.join("DEBIAN/control"), control).unwrap();
    tool(
        lab.dir(),
        "dpkg-deb",
        &[
            "-b",
            "--root-owner-group",
            package.to_str().unwrap(),
            packages.join("firmware.deb").to_str().unwrap(),
        ],
    );
    let made = import(&lab, &[packages.to_str().unwrap(), "--id", "both", "--baseline-version", "1.0"]);
    assert_eq!((&made["baseline"], &made["version"]), (&"both".into(), &"1.0".into()));
    let fleet = lab.fleet(&[1, 2], "both", "");
    let done = deploy(&lab, &fleet);
    assert_eq!(done.exit, 0, "{}", done.all);
    let [debian, redhat] = [1, 2].map(|k| told(&lab, &done, k));
    let (deb, rpm) = ("firmware", "carena-test-blob-2.0-1.noarch");
    assert_eq!(debian[deb].0, "updated", "{debian:?}");
    assert_eq!(redhat[rpm].0, "updated", "{redhat:?}");
    let wrong = |outcome: &(String, String), why: &str| {
        assert_eq!((outcome.0.as_str(), outcome.1.as_str()), ("not-applicable", why));
    };
    wrong(&debian[rpm], "for package tool rpm, the node has dpkg");
    wrong(&redhat[deb], "for package tool dpkg, the node has rpm");
    assert_eq!(
        lab.on_node(2, "rpm -q --qf '%{VERSION}-%{RELEASE}' carena-test-blob; cat /var/lib/blob/fw"),
        "2.0-12\n"
    );
    let told = "dpkg-query -W -f '${db:Status-Status} ${Version}' carena-test-firmware";
    assert_eq!(lab.on_node(1, told), "installed 1:2.0-1");
    let again = deploy(&lab, &fleet);
    assert_eq!(again.exit, 3, "{}", again.all);
    // A package that its tool refuses.
    let broken = lab.dir().join("broken");
    self::rpm(&broken, ["carena-test-broken", "1", "Requires: what-nobody-has\n"], "%files\n");
    let refused = deployed(&lab, &broken, 2, "");
    let (outcome, why) = &self::told(&lab, &refused, 2)["carena-test-broken-1-1.noarch"];
    assert_eq!(outcome, "failed");
    assert!(why.contains("what-nobody-has is needed by"), "{why}");
}

#[test]
fn an_rpm_of_hpes_is_unpacked_and_flashed_by_its_own_program_and_stays_no_package() {
    let lab = Lab::of_machines(1, HPE);
    lab.on_node(1, RPM_NODE);
    let packages = lab.dir().join("hpe");
    let place = "/usr/lib/x86_64-linux-gnu/firmware-system-p89-3.30";
    let setup = "#!/bin/sh\necho \"$PWD $*\" >/var/lib/flashed/told\necho 3.30 >/var/lib/flashed/bios_release\n\
        echo 09/21/2023 >/var/lib/flashed/bios_date\nexit 1\n";
    let body = format!(
        "%install\nmkdir -p %{{buildroot}}{place}\ncat >%{{buildroot}}{place}/hpsetup <<'END'\n{setup}END\n\
         chmod 755 %{{buildroot}}{place}/hpsetup\n%files\n{place}\n"
    );
    rpm(&packages, ["firmware-system-p89", "3.30_2023_09_21", ""], &body);
    let before = settled(&lab, 1);
    let done = deployed(&lab, &packages, 1, "");
    assert_eq!((done.exit, done.outcomes(&lab, 1)), (0, vec!["updated"]), "{}", done.all);
    assert_eq!(done.component(&lab, 1)["to"], "P89 v3.30 (09/21/2023)");
    let told = lab.on_node(1, "cat /var/lib/flashed/told");
    assert!(told.contains(&format!("/work{place} -s")), "{told}");
    assert!(lab.on_node(1, "rpm -q firmware-system-p89").contains("is not installed"));
    // The node has started since: what was put there before is not listed as new any more.
    let changed = crate::lab::difference(&before, &settled(&lab, 1));
    assert!(!changed.lines().any(|line| line.starts_with('+')), "{changed}");
}

#[test]
fn what_only_a_management_controller_installs_is_not_for_a_linux_node_and_says_so() {
    let lab = Lab::of_machines(1, HPE);
    let packages = lab.dir().join("controllers");
    std::fs::create_dir_all(&packages).unwrap();
    let work = lab.dir().join("work");
    std::fs::create_dir_all(&work).unwrap();
    std::fs::copy(vendors::fwpkg(&work), packages.join("nic.fwpkg")).unwrap();
    let pldm = crate::formats::pldm::write(&work, 1);
    std::fs::copy(pldm, packages.join("card.pldm")).unwrap();
    // For VMware.
    bash(
        &packages,
        "mkdir w; cd w; echo x >CP1.vmexe; cat >CP1.xml <<E\n<cpq_package><id product='p1'/><name><name_xlate lang='en'>For VMware</name_xlate></name><version value='1.0'/></cpq_package>\nE\nzip -q ../CP1.zip CP1.vmexe CP1.xml; cd ..; rm -r w",
    );
    let made = import(&lab, &[packages.to_str().unwrap()]);
    assert_eq!(made["components"].as_array().unwrap().len(), 3, "{made}");
    // The machine has another ROM than the package names: that is told first. So say it is one of them.
    let state = lab.dir().join("state/cache/baselines/controllers").join(made["version"].as_str().unwrap());
    let manifest = std::fs::read_to_string(state.join("baseline.toml")).unwrap();
    assert!(manifest.contains("rom_family = [\"U32\", \"U30\"]"), "{manifest}");
    std::fs::write(state.join("baseline.toml"), manifest.replace("\"U30\"", "\"P89\"")).unwrap();
    let done = deploy(&lab, &lab.fleet(&[1], "controllers", "unsigned = \"accept\""));
    assert_eq!(done.exit, 3, "{}", done.all);
    let told = told(&lab, &done, 1);
    let needs = "needs a Redfish node";
    for (id, why) in [("nic", needs), ("card", needs), ("cp1", "it holds nothing that runs on Linux")] {
        assert_eq!(told[id].0, "not-applicable", "{id}");
        assert!(told[id].1.ends_with(why), "{id}: {}", told[id].1);
    }
}

/// The bound on memory is the kernel's, as it is for listing.
#[test]
fn chosen_packages_of_800_in_a_10_gib_image_are_imported_in_seconds_with_flat_memory() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    catalogue::spp(&dir.join("spp"), 800);
    // Two of them are real: 32 MiB each.
    let chosen = ["0007", "0500"].map(|number| {
        let prefix =
            format!("{number}_with_a_long_name_as_vendors_like_them_more_than_sixty_four_characters.pldm");
        let flash = format!("# {}\nexit 0\n", "x".repeat(100));
        let made = scexe(dir, "cp", &format!("Thing {number}"), "1.2", &flash);
        bash(
            dir,
            &format!("{{ cat {}; head -c 32M /dev/urandom; }} > spp/packages/{prefix}.fwpkg", made.display()),
        );
        prefix
    });
    bash(
        dir,
        "sed -i 's/\"Bytes\": \"[0-9]*\", //g' spp/manifest/metadata.json; genisoimage -quiet -R -J -joliet-long -o spp.iso spp; truncate -s 10G spp.iso",
    );
    let carena = env!("CARGO_BIN_EXE_carena");
    let refused = crate::formats::run(dir, carena, &["cache", "import", "spp.iso", "--state", "state"]);
    assert_eq!(refused.status.code(), Some(254));
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("has 800 packages") && complaint.contains("--only"), "{complaint}");
    for (source, state) in [("spp.iso", "a"), ("spp", "b")] {
        let begun = std::time::Instant::now();
        let line = format!(
            "ulimit -v 262144; exec {carena} cache import {source} --unsigned-ok --json --state {state} --only {},{}",
            chosen[0], chosen[1]
        );
        let out = bash(dir, &line);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
        let made: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&made["baseline"], &made["version"]),
            (&"gen10-spp".into(), &"2026.07.00.00".into()),
            "{out}"
        );
        assert_eq!(made["components"].as_array().unwrap().len(), 2, "{out}");
        for (payload, file) in made["payloads"].as_array().unwrap().iter().zip(&chosen) {
            let judge = bash(dir, &format!("sha256sum < spp/packages/{file}.fwpkg"));
            assert!(judge.starts_with(payload["sha256"].as_str().unwrap()), "{out}");
        }
        // The same again changes nothing.
        let again = bash(dir, &format!("{line} || [ $? = 3 ]").replace("exec ", ""));
        assert!(again.contains("\"state\":\"there\""), "{again}");
    }
}

#[test]
fn of_an_archive_for_linux_its_own_installer_is_what_travels() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let inner = scexe(dir, "CP054321", "Online ROM Flash - DL380 Gen9 (P89)", "3.30_09-21-2023", "exit 0\n");
    bash(
        dir,
        "sed -n '/^#ARCHIVE$/,$p' CP054321.scexe | tail -n +2 | tar xz CP054321.xml; zip -q CP054321.zip CP054321.scexe CP054321.xml",
    );
    let carena = env!("CARGO_BIN_EXE_carena");
    let refused = crate::formats::run(dir, carena, &["cache", "import", "CP054321.zip", "--state", "state"]);
    assert_eq!(refused.status.code(), Some(254));
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("nobody has signed") && complaint.contains("--unsigned-ok"), "{complaint}");
    assert!(!dir.join("state/cache/baselines").exists() && !dir.join("state/cache/objects").exists());
    let out = bash(dir, &format!("{carena} cache import CP054321.zip --unsigned-ok --json --state state"));
    let made: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    let judge = bash(dir, &format!("sha256sum < {}", inner.display()));
    assert!(judge.starts_with(made["payloads"][0]["sha256"].as_str().unwrap()), "{out}");
    let version = made["version"].as_str().unwrap();
    let manifest =
        std::fs::read_to_string(dir.join(format!("state/cache/baselines/cp054321/{version}/baseline.toml")))
            .unwrap();
    for line in [
        "id = \"cp054321-p89\"",
        "version = \"P89 v3.30 (09/21/2023)\"",
        "version_format = \"hpe\"",
        "format = \"hpe-scexe\"",
        "payload = \"CP054321.scexe\"",
        "match = { maker = \"hpe\", rom_family = [\"P89\"] }",
        "order = 30",
        "expected_s = 600",
        "read_back = \"bios\"",
    ] {
        assert!(manifest.lines().any(|found| found == line), "{line}: {manifest}");
    }
    // The same content under the version that is asked for, though it is there under today's.
    let line =
        format!("{carena} cache import CP054321.zip --unsigned-ok --json --state state --baseline-version 7");
    let out = bash(dir, &line);
    assert!(out.contains("\"state\":\"imported\"") && out.contains("\"version\":\"7\""), "{out}");
    assert!(dir.join("state/cache/baselines/cp054321/7/baseline.toml").exists());
    // A byte of the archive, and it is refused before anything is kept.
    bash(dir, "cp CP054321.zip bad.zip; printf x | dd of=bad.zip bs=1 seek=200 conv=notrunc status=none");
    let refused = crate::formats::run(
        dir,
        carena,
        &["cache", "import", "bad.zip", "--unsigned-ok", "--state", "other"],
    );
    assert!(!refused.status.success(), "{}", String::from_utf8_lossy(&refused.stdout));
    assert!(!dir.join("other/cache/baselines").exists());
}
