//! The appliance as a machine: boots in QEMU from kernel and initramfs and as UKI, answers on each kind of address,
//! shows on its screen what it says on its serial line, and goes down when asked.
//!
//! Needs root and `out/` as image/build writes it. All traffic stays in network namespaces made here.

mod node;

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Emulation on a busy machine; the bound is there to end a hang.
const BOOT: Duration = Duration::from_secs(240);
/// Nothing runs on the box that it would have to wait for.
const DOWN: Duration = Duration::from_secs(60);
const BOX: &str = "fd00:b0::5";
/// The text screen of a VGA card, all of its pages.
const VGA_TEXT: (&str, u64) = ("0xb8000", 0x8000);

pub fn until(what: &str, bound: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < bound, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn out(file: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("out").join(file);
    assert!(path.exists(), "{} is missing: run image/build", path.display());
    path
}

/// A program in namespaces of its own. They end with this process, however it ends, and all in them with them.
pub fn in_namespaces(namespaces: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
    command.args(namespaces).arg("--").stdin(Stdio::null());
    command
}

/// Whether the box answers on an address, seen from the network namespace of a process.
pub fn is_healthy_at(address: &str, namespace_of: &Child) -> bool {
    let pid = namespace_of.id().to_string();
    let url = format!("https://{address}:63002/healthz");
    let curl = ["-t", &pid, "-n", "curl", "--silent", "--fail", "--insecure", "--max-time", "5", &url];
    Command::new("nsenter").args(curl).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A virtual machine; ended when it goes out of scope, whatever the test did.
struct Machine {
    child: Child,
    dir: tempfile::TempDir,
    /// Kept open: QEMU drops what a closed connection said last.
    monitor: std::cell::OnceCell<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("serial console:\n{}", self.serial());
        }
    }
}

impl Machine {
    /// QEMU in a network namespace of its own, with a tap whose other end is the machine's only link. `before` are
    /// lines of shell for the namespace.
    fn boot(before: &str, how: &[String]) -> Self {
        let accel = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("image/accel"))
            .arg(out("kernel"))
            .output()
            .unwrap();
        let accel = String::from_utf8(accel.stdout).unwrap();
        assert!(accel.starts_with("-accel "), "image/accel said {accel:?}");
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "set -e
             mount -t proc proc /proc; ip link set lo up; ip tuntap add ct0 mode tap
             echo 0 >/proc/sys/net/ipv6/conf/ct0/accept_dad
             ip link set ct0 up; ip addr add fd00:b0::1/64 dev ct0 nodad; ip addr add 192.0.2.1/24 dev ct0
             {before}
             exec qemu-system-x86_64 -M q35 {accel} -m 256 -nodefaults -display none -no-reboot -vga std \
               -serial file:{dir}/serial -monitor unix:{dir}/monitor,server,nowait -device virtio-rng-pci \
               -netdev tap,id=n,ifname=ct0,script=no,downscript=no -device virtio-net-pci,netdev=n \"$@\"",
            accel = accel.trim(),
            dir = dir.path().display()
        );
        let child = in_namespaces(&[]).args(["bash", "-c", &script, "bash"]).args(how).spawn().unwrap();
        Self { child, dir, monitor: std::cell::OnceCell::new() }
    }

    /// From kernel and initramfs, with words for the kernel's command line.
    fn boot_kernel(before: &str, words: &str) -> Self {
        let line = fs::read_to_string(out("cmdline")).unwrap();
        let file = |name: &str| out(name).display().to_string();
        let how = ["-kernel", &file("kernel"), "-initrd", &file("initramfs"), "-append"];
        let how: Vec<String> = how.iter().map(ToString::to_string).collect();
        Self::boot(before, &[how, vec![format!("{} {words}", line.trim())]].concat())
    }

    fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("serial")).unwrap_or_default()).into_owned()
    }

    fn wait_ready(&mut self) {
        until("the ready line", BOOT, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the machine has ended: {ended:?}");
            self.serial().contains("carena: ready ")
        });
    }

    /// The address of the newest report on the console that begins with `start`, in brackets, as a URL has it here.
    fn told_address(&self, start: &str) -> Option<String> {
        let serial = self.serial();
        let from = serial.rfind(&format!("https://[{start}"))? + "https://[".len();
        let address = serial[from..].split(']').next()?;
        // The zone is the box's name of its link; from here the link is ct0.
        Some(match address.split_once('%') {
            Some((address, _)) => format!("[{address}%25ct0]"),
            None => format!("[{address}]"),
        })
    }

    fn told_token(&self) -> String {
        let serial = self.serial();
        let line = serial.lines().rfind(|line| line.starts_with("  token ")).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    }

    fn wait_healthy_at(&self, address: &str) {
        until("/healthz", BOOT, || is_healthy_at(address, &self.child));
    }

    fn monitor(&self, command: &str) {
        let connect = || UnixStream::connect(self.dir.path().join("monitor")).unwrap();
        let mut monitor = self.monitor.get_or_init(connect);
        monitor.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// What a monitor command writes to a file, once it is as long as it will be.
    fn dump(&self, command: &str, length: u64) -> Vec<u8> {
        let path = self.dir.path().join("dump");
        // In quotes: after a number, a slash would be a division.
        self.monitor(&format!("{command} \"{}\"", path.display()));
        until(command, DOWN, || fs::metadata(&path).is_ok_and(|file| file.len() >= length));
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    }

    /// The letters on the text screen; each is followed by its colour.
    fn screen_text(&self) -> String {
        let (address, length) = VGA_TEXT;
        let bytes = self.dump(&format!("pmemsave {address} {length}"), length);
        bytes.iter().step_by(2).map(|&byte| char::from(byte)).collect()
    }

    fn wait_gone(mut self, last_word: &str) {
        until("the end of the machine", DOWN, || self.child.try_wait().unwrap().is_some());
        let serial = self.serial();
        assert!(serial.contains(last_word) && !serial.contains("Kernel panic"), "{serial}");
    }
}

#[test]
fn kernel_and_initramfs_boot_answer_and_obey_the_power_button() {
    let mut machine = Machine::boot_kernel("", &format!("carena.address={BOX}/64"));
    machine.wait_ready();
    machine.wait_healthy_at(&format!("[{BOX}]"));
    until("the address on the console", BOOT, || machine.told_address(BOX).is_some());
    let (token, url) = (machine.told_token(), format!("https://[{BOX}]:63002"));
    until("the same on the screen", DOWN, || {
        let screen = machine.screen_text();
        screen.contains("carena: ready ") && screen.contains(&url) && screen.contains(&token)
    });
    machine.monitor("system_powerdown");
    machine.wait_gone("carena: powering off");
}

/// Every TCP port, as a neighbour sees it.
#[test]
fn a_scan_finds_the_console_and_nothing_else() {
    let mut machine = Machine::boot_kernel("", &format!("carena.address={BOX}/64"));
    machine.wait_ready();
    machine.wait_healthy_at(&format!("[{BOX}]"));
    let pid = machine.child.id().to_string();
    let scan = [
        "-t",
        &pid,
        "-n",
        "nmap",
        "-6",
        "-n",
        "-Pn",
        "-sS",
        "-p-",
        "--min-rate",
        "4000",
        "--max-retries",
        "1",
    ];
    let output = Command::new("nsenter").args(scan).args(["-oG", "-", BOX]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    // Dropped, not refused: the rest is filtered, and none is closed.
    assert!(said.contains("Ports: 63002/open/tcp/////") && said.contains("filtered (65534)"), "{said}");
}

#[test]
fn an_ipv4_address_answers_and_ctrl_alt_del_restarts() {
    let mut machine = Machine::boot_kernel("", "carena.address=192.0.2.5/24 carena.gateway=192.0.2.1");
    machine.wait_ready();
    machine.wait_healthy_at("192.0.2.5");
    until("the address on the console", BOOT, || machine.serial().contains("https://192.0.2.5:63002"));
    machine.monitor("sendkey ctrl-alt-delete");
    machine.wait_gone("carena: restarting");
}

#[test]
fn an_advertised_address_is_shown_and_answers() {
    let radvd = "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; mount -t tmpfs tmpfs /run
        echo 'interface ct0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; prefix fd00:b1::/64 { }; };' >/run/radvd.conf
        ip addr add fd00:b1::1/64 dev ct0 nodad; chmod 644 /run/radvd.conf
        radvd -n -C /run/radvd.conf -p /run/radvd.pid >/dev/null 2>&1 &";
    let mut machine = Machine::boot_kernel(radvd, "");
    machine.wait_ready();
    until("the address on the console", BOOT, || machine.told_address("fd00:b1:").is_some());
    machine.wait_healthy_at(&machine.told_address("fd00:b1:").unwrap());
}

/// The UKI's command line is its own, so its link configures itself: the address is read from the console.
#[test]
fn the_uki_boots_under_ovmf_and_answers_on_its_link_local_address() {
    let esp = tempfile::tempdir().unwrap();
    fs::create_dir_all(esp.path().join("EFI/BOOT")).unwrap();
    fs::copy(out("carena.efi"), esp.path().join("EFI/BOOT/BOOTX64.EFI")).unwrap();
    let drive = format!("format=raw,file=fat:rw:{},if=virtio", esp.path().display());
    let mut machine =
        Machine::boot("", &["-bios", "/usr/share/ovmf/OVMF.fd", "-drive", &drive].map(String::from));
    machine.wait_ready();
    until("the address on the console", BOOT, || machine.told_address("fe80:").is_some());
    machine.wait_healthy_at(&machine.told_address("fe80:").unwrap());
    // Here the screen is pixels: at least a line of text is lit.
    let lit = machine.dump("screendump", 100_000).iter().filter(|&&byte| byte > 0x60).count();
    assert!(lit > 1_000, "{lit} bytes of the screen are lit");
    machine.monitor("system_powerdown");
    machine.wait_gone("carena: powering off");
}
