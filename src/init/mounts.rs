//! The file systems of the running appliance, as a table.
//!
//! All of them are in memory: the box keeps nothing over a restart unless it is given a disk. A mount that is
//! already there is left as it is, so that init also runs as PID 1 of a namespace.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::InitError;

struct Mount {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// `/var/lib/carena` belongs to the user `serve` runs as (`supervise::SERVE_ID`).
const MOUNTS: [Mount; 7] = [
    Mount { source: "proc", target: "/proc", kind: "proc", flags: PLAIN, options: "" },
    Mount { source: "sysfs", target: "/sys", kind: "sysfs", flags: PLAIN, options: "" },
    Mount { source: "devtmpfs", target: "/dev", kind: "devtmpfs", flags: DEVICES, options: "mode=0755" },
    Mount {
        source: "devpts",
        target: "/dev/pts",
        kind: "devpts",
        flags: DEVICES,
        options: "mode=0600,ptmxmode=0666",
    },
    Mount { source: "run", target: "/run", kind: "tmpfs", flags: PLAIN, options: "mode=0755,size=10%" },
    Mount { source: "tmp", target: "/tmp", kind: "tmpfs", flags: PLAIN, options: "mode=1777,size=10%" },
    Mount {
        source: "state",
        target: crate::paths::STATE_ROOT,
        kind: "tmpfs",
        flags: PLAIN,
        options: "mode=0700,uid=990,gid=990,size=70%",
    },
];

/// Mounts everything; goes on after a failure and names all of them.
pub fn mount_all() -> Result<(), InitError> {
    let failed: Vec<String> = MOUNTS.iter().filter_map(|entry| mount_one(entry).err()).collect();
    if failed.is_empty() { Ok(()) } else { Err(InitError::Mounts(failed.join(", "))) }
}

fn mount_one(entry: &Mount) -> Result<(), String> {
    let told = |cause: &dyn std::fmt::Display| format!("{} ({cause})", entry.target);
    std::fs::create_dir_all(entry.target).map_err(|e| told(&e))?;
    match mount(Some(entry.source), entry.target, Some(entry.kind), entry.flags, Some(entry.options)) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(cause) => Err(told(&cause)),
    }
}
