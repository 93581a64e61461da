//! What `serve` gives up for good before it begins: it talks to the network, so what breaks into it must find nothing.
//!
//! Its user and capabilities init has taken already ([`super::supervise`]). Here the kernel is told which files it may
//! write (Landlock) and which system calls it never needs (seccomp): to run a program, to load a module, to mount, to
//! change the clock, to look into other processes, to make namespaces. It must be called while there is one thread only:
//! both hold for the calling thread and those it starts.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Newest set of file rights that is asked for; an older kernel holds those it knows.
const RIGHTS: ABI = ABI::V5;

/// Settings of links are files here; a kernel without IPv6 has none.
const NETWORK_SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Calls that are refused: EPERM. By their numbers on x86-64: the x32 ones, which Debian's kernel has off, are others.
const REFUSED: [libc::c_long; 48] = [
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_syslog,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_acct,
    // File systems.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Namespaces, names, the clock, keys.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_add_key,
    libc::SYS_keyctl,
];

/// Why it could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Landlock.
    #[error("the files it may write cannot be limited")]
    Files(#[from] RulesetError),
    /// A directory that is to be written in.
    #[error("the files it may write cannot be limited")]
    Place(#[from] landlock::PathFdError),
    /// seccomp.
    #[error("its system calls cannot be limited")]
    Calls(#[from] seccompiler::Error),
    /// The same.
    #[error("its system calls cannot be limited")]
    Filter(#[from] BackendError),
}

/// Confines this thread, and those it starts, to `state`. True when the kernel holds the files too.
///
/// # Errors
/// [`ConfineError`]; some of it may hold then.
pub fn confine(state: &Path) -> Result<bool, ConfineError> {
    // One that fails must not spare the other.
    let holds = limit_files(state);
    limit_calls()?;
    holds
}

/// Everything may be read, as far as its user may; nothing may be written outside `state`, and nothing run at all.
fn limit_files(state: &Path) -> Result<bool, ConfineError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own: BitFlags<AccessFs> =
        AccessFs::from_all(RIGHTS) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let write = read | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, read))?
        .add_rule(PathBeneath::new(PathFd::new(state)?, own))?;
    if let Ok(settings) = PathFd::new(NETWORK_SETTINGS) {
        rules = rules.add_rule(PathBeneath::new(settings, write))?;
    }
    let status = rules.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn limit_calls() -> Result<(), ConfineError> {
    let refused = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let mut rules: Vec<(i64, Vec<SeccompRule>)> = REFUSED.map(|call| (call, Vec::new())).into();
    // A user namespace would bring all capabilities back, though only in there.
    let new_user = libc::CLONE_NEWUSER.unsigned_abs().into();
    let asks = SeccompCmpOp::MaskedEq(new_user);
    let asks = SeccompCondition::new(0, SeccompCmpArgLen::Qword, asks, new_user)?;
    rules.push((libc::SYS_clone, vec![SeccompRule::new(vec![asks])?]));
    apply(rules, refused(libc::EPERM))?;
    // Its flags are in memory, where a filter cannot look; libc takes clone(2) where this is not there.
    apply(vec![(libc::SYS_clone3, Vec::new())], refused(libc::ENOSYS))
}

fn apply(rules: Vec<(i64, Vec<SeccompRule>)>, action: SeccompAction) -> Result<(), ConfineError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, action, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}
