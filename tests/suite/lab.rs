//! A lab of nodes for one test: started on `up`, gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab");

pub struct Lab {
    child: Child,
    dir: PathBuf,
}

impl Lab {
    pub fn up(nodes: usize) -> Self {
        let dir = std::env::temp_dir().join(format!("carena-lab-{}-{nodes}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let child = Command::new(SCRIPT)
            .args(["up", "--nodes", &nodes.to_string(), "--dir"])
            .arg(&dir)
            .spawn()
            .unwrap();
        let lab = Self { child, dir };
        let end = Instant::now() + Duration::from_secs(60);
        while !lab.dir.join("ready").exists() {
            assert!(Instant::now() < end, "lab not ready in a minute");
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
    pub fn hub_command(&self, program: &str) -> Command {
        let mut command = Command::new(SCRIPT);
        command.arg("exec").arg(&self.dir).args(["hub", "--", program]);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
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
