//! The appliance as a machine: boots in QEMU, answers, goes down when asked; PID 1 brings a killed `serve` back.
//!
//! Needs root and `out/` as image/build writes it. All traffic stays in network namespaces made here.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start and end real machines, and wait for them with a bound"
)]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Emulation on a busy machine; the bound is there to end a hang.
const BOOT: Duration = Duration::from_secs(240);
/// `serve` gets 10 s to stop, the rest is the kernel's.
const DOWN: Duration = Duration::from_secs(40);
const BOX: &str = "fd00:b0::5";

/// A machine or a namespace; ended when it goes out of scope, whatever the test did.
struct Machine {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, bound: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < bound, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn out(file: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("out").join(file);
    assert!(path.exists(), "{} is missing: run image/build", path.display());
    path
}

/// QEMU in a network namespace of its own, with a tap whose other end is the machine's only link.
fn boot(how: &str) -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e
         ip link set lo up; ip tuntap add ct0 mode tap
         echo 0 >/proc/sys/net/ipv6/conf/ct0/accept_dad
         ip link set ct0 up; ip addr add fd00:b0::1/64 dev ct0 nodad
         exec qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot -vga std \
           -serial file:{dir}/serial -monitor unix:{dir}/monitor,server,nowait -device virtio-rng-pci \
           -netdev tap,id=n,ifname=ct0,script=no,downscript=no -device virtio-net-pci,netdev=n {how}",
        dir = dir.path().display()
    );
    let child =
        Command::new("unshare").args(["-n", "bash", "-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    Machine { child, dir }
}

fn boot_kernel() -> Machine {
    let line = fs::read_to_string(out("cmdline")).unwrap();
    let (kernel, initramfs) = (out("kernel"), out("initramfs"));
    let how = format!(
        "-kernel {} -initrd {} -append '{line} carena.address={BOX}/64'",
        kernel.display(),
        initramfs.display()
    );
    boot(&how)
}

impl Machine {
    fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("serial")).unwrap_or_default()).into_owned()
    }

    fn is_healthy_at(&self, address: &str) -> bool {
        let pid = self.child.id().to_string();
        let url = format!("https://[{address}]:63002/healthz");
        let curl = ["-t", &pid, "-n", "curl", "--silent", "--fail", "--insecure", "--max-time", "5", &url];
        Command::new("nsenter").args(curl).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn wait_ready(&self) {
        until("the ready line", BOOT, || self.serial().contains("carena: ready "));
        assert!(!self.serial().contains("Kernel panic"));
    }

    fn monitor(&self, command: &str) {
        let mut monitor = UnixStream::connect(self.dir.path().join("monitor")).unwrap();
        monitor.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    fn wait_gone(&mut self) {
        until("the end of the machine", DOWN, || self.child.try_wait().unwrap().is_some());
    }
}

#[test]
fn kernel_and_initramfs_boot_answer_and_obey_the_power_button() {
    let mut machine = boot_kernel();
    machine.wait_ready();
    until("/healthz", BOOT, || machine.is_healthy_at(BOX));
    machine.monitor("system_powerdown");
    machine.wait_gone();
    assert!(machine.serial().contains("carena: powering off"));
}

#[test]
fn ctrl_alt_del_restarts_cleanly() {
    let mut machine = boot_kernel();
    machine.wait_ready();
    machine.monitor("sendkey ctrl-alt-delete");
    machine.wait_gone();
    assert!(machine.serial().contains("carena: restarting"));
}

/// The UKI's command line is its own, so its link configures itself: the address is read from the console.
#[test]
fn the_uki_boots_under_ovmf_and_answers_on_its_link_local_address() {
    let esp = tempfile::tempdir().unwrap();
    fs::create_dir_all(esp.path().join("EFI/BOOT")).unwrap();
    fs::copy(out("carena.efi"), esp.path().join("EFI/BOOT/BOOTX64.EFI")).unwrap();
    let machine = boot(&format!(
        "-bios /usr/share/ovmf/OVMF.fd -drive format=raw,file=fat:rw:{},if=virtio",
        esp.path().display()
    ));
    machine.wait_ready();
    let address = || {
        let serial = machine.serial();
        let from = serial.rfind("https://[fe80:")? + "https://[".len();
        serial[from..].split([']', '%']).next().map(|address| format!("{address}%25ct0"))
    };
    until("/healthz", BOOT, || address().is_some_and(|address| machine.is_healthy_at(&address)));
}

#[test]
fn a_killed_serve_is_started_again() {
    let binary = env!("CARGO_BIN_EXE_carena");
    let child = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc", binary])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let machine = Machine { child, dir: tempfile::tempdir().unwrap() };
    let only_child = |pid: u32| -> Option<u32> {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    };
    let serve = || only_child(only_child(machine.child.id())?);
    until("/healthz", BOOT, || machine.is_healthy_at("::1"));
    let first = serve().unwrap();
    assert!(Command::new("kill").args(["-9", &first.to_string()]).status().unwrap().success());
    until("another serve", DOWN, || serve().is_some_and(|pid| pid != first));
    until("/healthz again", DOWN, || machine.is_healthy_at("::1"));
}

/// Two builds of the same binary give the same bytes.
#[test]
fn the_image_is_reproducible() {
    let build = || {
        let out = tempfile::tempdir().unwrap();
        let built = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("image/build"))
            .args(["--binary", env!("CARGO_BIN_EXE_carena"), "--out"])
            .arg(out.path())
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        String::from_utf8_lossy(&built.stdout).into_owned()
    };
    assert_eq!(build(), build());
}
