//! A lab of nodes for one test: started on `up`, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab");

pub struct Lab {
    child: Child,
    dir: PathBuf,
}

impl Lab {
    pub fn up(nodes: usize) -> Self {
        Self::of_machines(nodes, &[])
    }

    /// Nodes that are machines: files of `/sys/class/dmi/id`, and what they hold.
    pub fn of_machines(nodes: usize, dmi: &[(&str, &str)]) -> Self {
        static LABS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = LABS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("carena-lab-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        for (name, value) in dmi {
            std::fs::create_dir_all(dir.join("dmi")).unwrap();
            std::fs::write(dir.join("dmi").join(name), format!("{value}\n")).unwrap();
        }
        let child = Command::new(SCRIPT)
            .args(["up", "--nodes", &nodes.to_string(), "--dir"])
            .arg(&dir)
            // Held until the lab is dropped or this process ends, however it ends.
            .arg("--until-eof")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let lab = Self { child, dir };
        // A node takes about a second when the machine is busy.
        let bound = Duration::from_secs(60) + Duration::from_secs(2) * u32::try_from(nodes).unwrap();
        let end = Instant::now() + bound;
        while !lab.dir.join("ready").exists() {
            assert!(Instant::now() < end, "lab not ready in {bound:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        lab
    }
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub fn node_address(&self, k: usize) -> String {
        format!("fd00:ca::{:x}", 0x10 + k)
    }
    /// Runs a shell command on a node; returns its standard output.
    pub fn on_node(&self, k: usize, command: &str) -> String {
        let mut node = Command::new(SCRIPT);
        let output = node
            .arg("exec")
            .arg(&self.dir)
            .args([&format!("node{k}"), "--", "sh", "-c", command])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a node answers SSH: after a restart, after its link was down.
    pub fn wait_for_node(&self, k: usize, bound: Duration) {
        let end = Instant::now() + bound;
        let probe = format!(
            "exec 3<>/dev/tcp/{}/22 && read -r line <&3 && [[ $line == SSH-* ]]",
            self.node_address(k)
        );
        while !self.hub_command("timeout").args(["2", "bash", "-c", &probe]).status().unwrap().success() {
            assert!(Instant::now() < end, "node {k} does not answer within {bound:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Restarts a node and waits until it is back.
    pub fn restart(&self, k: usize) {
        let bound = Duration::from_secs(60);
        let pid = || std::fs::read_to_string(self.dir.join(format!("node{k}.pid"))).unwrap_or_default();
        let (before, end) = (pid(), Instant::now() + bound);
        self.on_node(k, "reboot");
        while pid() == before {
            assert!(Instant::now() < end, "node {k} does not go down within {bound:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait_for_node(k, bound);
    }

    /// Pulls a node's cable, or puts it back.
    pub fn link(&self, k: usize, state: &str) {
        let set = self.hub_command("ip").args(["link", "set", &format!("v{k}"), state]).status().unwrap();
        assert!(set.success(), "link of node {k} {state}");
    }

    /// Takes the box's own link down, or up; its addresses stay its own, as whoever configures them sees to.
    pub fn box_link(&self, state: &str) {
        let keep = "echo 1 >/proc/sys/net/ipv6/conf/br0/keep_addr_on_down";
        let script = format!("{keep} && ip link set br0 {state}");
        assert!(
            self.hub_command("sh").args(["-c", &script]).status().unwrap().success(),
            "link of the box {state}"
        );
    }

    /// Everything a deployment could leave: rules without counters, mounts, logged-in users, files in places one
    /// writes to, processes. What sshd and PAM write for any login is not listed.
    pub fn snapshot(&self, k: usize) -> String {
        self.on_node(
            k,
            "for tool in ip6tables-save iptables-save ip6tables-legacy-save iptables-legacy-save; do
                $tool 2>/dev/null | sed -e s/\\[[0-9:]*\\]// -e /^#/d
            done
            command -v nft >/dev/null && nft -s list ruleset
            cat /proc/self/mounts; who
            find /etc /var /root /home /opt /srv /boot /usr/local -xdev -newer /run/sshd.pid -type f -print | grep -v -e ^/var/cache/apt -e ^/var/lib/sudo -e ^/var/log/[bw]tmp -e ^/var/log/lastlog | sort
            find /run /tmp /var/tmp /root /etc /var/lib /dev/shm -xdev | grep -v -e ^/run/motd -e ^/run/sudo -e ^/var/lib/sudo -e ^/run/utmp | sort
            ps -e -o comm= | grep -v -e ^sshd -e ^ps$ -e ^sh$ -e ^find$ -e ^sort$ -e ^grep$ | sort",
        )
    }

    /// A fleet file of these nodes.
    pub fn fleet(&self, nodes: &[usize], baseline: &str, options: &str) -> PathBuf {
        let nodes: Vec<_> = nodes.iter().map(|k| (*k, self.node_address(*k))).collect();
        self.fleet_at("fleet.toml", &nodes, baseline, options)
    }

    /// The same under a name of its own, nodes at these addresses: by password and sudo where the number is odd, as
    /// root by key where it is even.
    pub fn fleet_at(&self, name: &str, nodes: &[(usize, String)], baseline: &str, options: &str) -> PathBuf {
        // Directories that a test makes are signed by nobody: the explicit word of an operator who knows that.
        let unsigned = if baseline.contains('/') { "unsigned = \"accept\"" } else { "" };
        let mut text = format!("baseline = {baseline:?}\n[options]\n{unsigned}\n{options}\n");
        for (k, address) in nodes {
            let login = if k % 2 == 1 {
                "user = \"operator\"\npassword_file = \"op.secret\"\nprivilege = \"sudo\""
            } else {
                "user = \"root\"\nkey_file = \"id_ed25519\""
            };
            text.push_str(&format!("[[node]]\naddress = \"{address}\"\n{login}\n"));
        }
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The command line, in the hub, with a state directory of the lab's.
    pub fn carena(&self, arguments: &[&str]) -> Command {
        self.carena_in("state", arguments)
    }

    /// The same with another state directory: a box of its own.
    pub fn carena_in(&self, state: &str, arguments: &[&str]) -> Command {
        let mut command = self.hub_command(env!("CARGO_BIN_EXE_carena"));
        command.args(arguments).arg("--state").arg(self.dir.join(state));
        command
    }

    pub fn hub_command(&self, program: &str) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg("exec").arg(&self.dir).args(["hub", "--", program]);
        command
    }
}

/// What was not there before (`+`) and what is not any more (`-`); empty when nothing has changed.
pub fn difference(before: &str, after: &str) -> String {
    let lines = |of: &str, less: &str, sign| {
        let mut less: Vec<&str> = less.lines().collect();
        let mut text = String::new();
        for line in of.lines() {
            match less.iter().position(|other| *other == line) {
                Some(index) => drop(less.swap_remove(index)),
                None => text.push_str(&format!("{sign}{line}\n")),
            }
        }
        text
    };
    lines(after, before, '+') + &lines(before, after, '-')
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Asked to end, the lab ends its namespaces; they end with it in any case.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_node_answers_ssh_with_the_key() {
    let lab = Lab::up(2);
    let out = lab
        .hub_command("ssh")
        .arg("-i")
        .arg(lab.dir().join("id_ed25519"))
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args([&format!("root@{}", lab.node_address(2)), "hostname"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "node2");
}

#[test]
fn sixty_four_nodes_have_their_addresses_and_no_more_are_allowed() {
    let lab = Lab::up(64);
    let answers = lab
        .hub_command("bash")
        .args([
            "-c",
            "for k in {17..80}; do printf -v a fd00:ca::%x $k; ssh-keyscan -t ed25519 $a; done 2>/dev/null",
        ])
        .output()
        .unwrap();
    let keys: std::collections::HashSet<String> = String::from_utf8(answers.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned))
        .collect();
    assert_eq!(keys.len(), 64, "every node has a key of its own");
    for wrong in ["0", "65", "-1", "x"] {
        let refused =
            Command::new(SCRIPT).args(["up", "--nodes", wrong, "--dir", "/nowhere"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("1..64"));
    }
}

#[test]
fn without_the_rights_it_says_what_it_needs() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = dir.path().join("lab");
    std::fs::copy(SCRIPT, &script).unwrap();
    let refused = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&script)
        .args(["up", "--nodes", "1", "--dir", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("needs root"), "{refused:?}");
}

/// `who` of a lab is ended by SIGKILL: its holder, or the script itself. Nothing of it stays.
fn nothing_stays_when_killed(who: &str) {
    let dir = tempfile::tempdir().unwrap();
    // A shell that holds the lab as a test does, by the other end of its standard input.
    let holding =
        "coproc LAB { exec \"$0\" up --nodes 2 --dir \"$1\" --until-eof; }; echo $LAB_PID >$1/pid; wait";
    let mut holder = Command::new("bash").args(["-c", holding, SCRIPT]).arg(dir.path()).spawn().unwrap();
    crate::boot::until("the lab", Duration::from_secs(60), || dir.path().join("ready").exists());
    let pid_in = |file: &str| -> i32 {
        std::fs::read_to_string(dir.path().join(file)).unwrap().trim().parse().unwrap()
    };
    // With the hub, the first process of its namespace, the kernel ends every node.
    let all = ["pid", "hub.pid"].map(pid_in);
    let killed = if who == "holder" { holder.id().cast_signed() } else { all[0] };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(killed), nix::sys::signal::Signal::SIGKILL).unwrap();
    let alive = |pid: &i32| Path::new(&format!("/proc/{pid}/ns/net")).metadata().is_ok();
    crate::boot::until("the end of the lab", Duration::from_secs(20), || !all.iter().any(alive));
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_lab_ends_with_a_killed_holder() {
    nothing_stays_when_killed("holder");
}

#[test]
fn a_lab_ends_with_its_killed_script() {
    nothing_stays_when_killed("script");
}
