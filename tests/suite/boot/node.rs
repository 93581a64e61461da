//! A machine as a node: its kernel really restarts, its disk is all that it keeps, and its firewall is its own kernel's.
//!
//! QEMU runs in the hub of a lab, on the lab's bridge, so that the command line reaches it as it does every other node.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{BOOT, DOWN, out, until};
use crate::lab::{Lab, difference};
use crate::operator::{Run, Thing, baseline, besides, deploy};

const ADDRESS: &str = "fd00:ca::99";

/// What a deployment could leave: files in places one writes to, mounts, rules, processes but those of the very login.
const SNAPSHOT: &str =
    "find /etc /root /home /run /tmp /var /dev/shm | sort; cat /proc/mounts; nft -s list ruleset
    ps -o comm | grep -v -e ^sshd -e ^sh$ -e ^ps$ -e ^grep$ -e ^sort$ -e ^kworker | sort";

struct Machine<'a> {
    lab: &'a Lab,
    child: Child,
    dir: PathBuf,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("serial console:\n{}", self.serial());
        }
    }
}

impl<'a> Machine<'a> {
    fn boot(lab: &'a Lab) -> Self {
        let dir = lab.dir().join("machine");
        let packages = std::fs::read_dir(out("cache")).unwrap().map(|entry| entry.unwrap().path());
        let newest = packages.filter(|path| path.extension().is_some_and(|end| end == "deb")).max();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = Command::new(here.join("tests/lab-machine"))
            .args([&dir, &newest.expect("image/build keeps the kernel's package")])
            .arg(ADDRESS)
            .arg(lab.dir().join("id_ed25519.pub"))
            .status();
        assert!(made.unwrap().success());
        let accel = Command::new(here.join("image/accel")).arg(dir.join("kernel")).output().unwrap();
        let accel = String::from_utf8(accel.stdout).unwrap();
        let at = |file: &str| dir.join(file).display().to_string();
        std::fs::write(dir.join("nvme"), vec![0; 1024 * 1024]).unwrap();
        let child = lab
            .hub_command("qemu-system-x86_64")
            .args(["-M", "q35", "-m", "256", "-nodefaults", "-display", "none"])
            .args(accel.split_whitespace())
            .args(["-serial", &format!("file:{}", at("serial"))])
            .args(["-qmp", &format!("unix:{},server,nowait", at("qmp"))])
            .args(["-drive", &format!("file={},format=raw,if=virtio", at("disk"))])
            .args(["-drive", &format!("file={},format=raw,if=none,id=nvme", at("nvme"))])
            .args(["-device", "nvme,drive=nvme,serial=carena"])
            .args(["-netdev", "tap,id=n,ifname=carena-tap0,script=no,downscript=no"])
            .args(["-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci"])
            .args(["-kernel", &at("kernel"), "-initrd", &at("initramfs")])
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Self { lab, child, dir };
        until("the machine's SSH server", BOOT, || machine.ask("echo up") == "up\n");
        machine
    }

    fn serial(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("serial")).unwrap_or_default()).into_owned()
    }

    /// What a command says there, over SSH.
    fn ask(&self, command: &str) -> String {
        let mut ssh = self.lab.hub_command("ssh");
        ssh.arg("-i").arg(self.lab.dir().join("id_ed25519"));
        ssh.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ]);
        ssh.args(["-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", &format!("root@{ADDRESS}"), command]);
        String::from_utf8(ssh.stderr(Stdio::null()).output().unwrap().stdout).unwrap()
    }

    fn boot_id(&self) -> String {
        self.ask("cat /proc/sys/kernel/random/boot_id")
    }

    fn snapshot(&self) -> String {
        besides(&self.ask(SNAPSHOT), &["bios"])
    }

    /// From now on a restart is the end of it, as with QEMU's `-no-reboot`.
    fn stay_off(&self) {
        let mut monitor = UnixStream::connect(self.dir.join("qmp")).unwrap();
        let mut said = BufReader::new(monitor.try_clone().unwrap()).lines();
        for command in [
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"execute":"set-action","arguments":{"reboot":"shutdown"}}"#,
        ] {
            monitor.write_all(command.as_bytes()).unwrap();
            said.by_ref().map(Result::unwrap).find(|line| line.contains("\"return\"")).unwrap();
        }
    }

    fn deploy(&self, options: &str) -> Run {
        let path = baseline(self.lab, "restarting", &[Thing::after_restart("bios")]);
        self.deploy_from(&path, options)
    }

    fn deploy_from(&self, path: &Path, options: &str) -> Run {
        let node = format!("[[node]]\naddress = \"{ADDRESS}\"\nuser = \"root\"\nkey_file = \"id_ed25519\"\n");
        let fleet = self.lab.dir().join("machine.toml");
        let text = format!(
            "baseline = {path:?}\n[options]\nunsigned = \"accept\"\nopen_firewall = \"yes\"\n{options}\n{node}"
        );
        std::fs::write(&fleet, text).unwrap();
        deploy(self.lab, &fleet)
    }
}

#[test]
fn a_machine_is_restarted_and_verified_and_one_that_stays_off_is_a_failure_that_says_since_when() {
    let lab = Lab::up(1);
    let mut machine = Machine::boot(&lab);
    let (before, boot) = (machine.snapshot(), machine.boot_id());
    assert!(before.contains("policy drop") && before.contains("/etc/inittab"), "{before}");

    let done = machine.deploy("reboot = \"if-needed\"");
    let node = &done.summary["nodes"][ADDRESS];
    assert_eq!((done.exit, &node["components"][0]["outcome"]), (0, &"updated".into()), "{}", done.all);
    assert_eq!(node["components"][0]["to"], "2.0");
    assert_ne!(machine.boot_id(), boot);
    // The file that outlived the restart has the boot before it.
    assert_eq!(machine.ask("cat /var/lib/bios"), boot);
    assert_eq!(machine.serial().matches("machine: started").count(), 2);
    assert_eq!(difference(&before, &machine.snapshot()), "");

    machine.ask("rm /var/lib/bios");
    machine.stay_off();
    let lost = machine.deploy("reboot_wait_s = 10");
    let node = &lost.summary["nodes"][ADDRESS];
    assert_eq!((lost.exit, &node["components"][0]["outcome"]), (253, &"unverified".into()), "{}", lost.all);
    let error = node["error"].as_str().unwrap();
    assert!(error.contains("return: the node was restarted at 20"), "{error}");
    assert!(error.contains("is not back after 1"), "{error}");
    assert_eq!(node["outstanding_traces"], serde_json::json!([]));
    until("the end of the machine", DOWN, || machine.child.try_wait().unwrap().is_some());
    // It was clean before it went down.
    let disk =
        Command::new("debugfs").args(["-R", "ls /var/tmp"]).arg(machine.dir.join("disk")).output().unwrap();
    let listed = String::from_utf8_lossy(&disk.stdout).into_owned();
    assert!(disk.status.success() && listed.contains("..") && !listed.contains("carena-"), "{disk:?}");
}

/// QEMU's disk is a real one to the kernel, and takes no firmware: as far as this the engine comes.
#[test]
fn an_nvme_disk_is_asked_for_its_revision_and_one_that_takes_no_firmware_is_told() {
    let lab = Lab::up(1);
    let machine = Machine::boot(&lab);
    let before = machine.snapshot();
    let theirs = machine.ask("cd /sys/class/nvme/nvme0; cat model firmware_rev");
    let (model, revision) = theirs.split_once('\n').unwrap();
    let (model, revision) = (model.trim(), revision.trim());
    assert!(!model.is_empty() && !revision.is_empty(), "{theirs}: {}", machine.serial());
    let image = vec![7; 20_000];
    let deploy = |name: &str, version: &str, options: &str| {
        let directory = lab.dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let manifest = format!(
            "id = {name:?}\nversion = \"1\"\ntitle = \"test\"\n[[component]]\nid = \"disk\"\ntitle = \"test\"\n\
             version = {version:?}\nformat = \"nvme\"\npayload = \"image\"\nsha256 = \"{}\"\nsize = {}\nexpected_s = 60\n\
             match = {{ disk_model = [{model:?}] }}\nread_back = {{ disk = {model:?} }}\n",
            carena::digest::Sha256::of(&image),
            image.len()
        );
        std::fs::write(directory.join("image"), &image).unwrap();
        std::fs::write(directory.join("baseline.toml"), manifest).unwrap();
        machine.deploy_from(&directory, options)
    };
    let component = |run: &Run| run.summary["nodes"][ADDRESS]["components"][0].clone();
    let same = deploy("same", revision, "");
    assert_eq!((same.exit, &component(&same)["outcome"]), (3, &"current".into()), "{}", same.all);
    let newer = deploy("newer", "99.9", "");
    let disk = component(&newer);
    assert_eq!((newer.exit, &disk["outcome"]), (253, &"failed".into()), "{}", newer.all);
    assert_eq!(disk["why"], "nvme0: it takes no firmware (Identify Controller, OACS bit 2)");
    assert_eq!((&disk["from"], &disk["to"]), (&revision.into(), &revision.into()));
    assert_eq!(difference(&before, &machine.snapshot()), "");
}
