//! What `serve` cannot do on the appliance, tried for real: as root here, so that nothing but the confinement refuses.

use std::fs::{self, File};
use std::io::{Error, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use carena::init::confine::confine;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

fn refusal<T>(result: Result<T, Error>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn it_writes_in_its_state_only_and_can_neither_run_nor_load_nor_mount() {
    let state = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let there = other.path().join("there");
    fs::copy("/bin/true", &there).unwrap();
    let own = state.path().to_owned();
    // Both hold for the thread that asks, and end with it.
    let confined = std::thread::spawn(move || {
        // A network of its own, of which it changes a setting.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let module = File::open("/proc/self/exe").unwrap();
        assert!(confine(&own).unwrap(), "this kernel has Landlock");

        let file = own.join("file");
        File::create(&file).unwrap().write_all(b"kept").unwrap();
        fs::rename(&file, own.join("moved")).unwrap();
        fs::create_dir(own.join("directory")).unwrap();
        UnixListener::bind(own.join("socket")).unwrap();
        fs::read("/proc/cmdline").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/lo/accept_ra", "2").unwrap();
        std::thread::spawn(|| ()).join().unwrap();
        std::net::TcpListener::bind("[::]:0").unwrap();

        let denied = Some(Errno::EACCES as i32);
        assert_eq!(refusal(File::create(other.path().join("new"))), denied);
        assert_eq!(refusal(File::options().append(true).open(&there)), denied);
        assert_eq!(refusal(fs::remove_file(&there)), denied);
        assert!(fs::rename(&there, own.join("there")).is_err());
        assert_eq!(refusal(std::os::unix::fs::symlink("/", other.path().join("link"))), denied);

        let refused = Some(Errno::EPERM as i32);
        fs::copy(&there, own.join("program")).unwrap();
        for program in [Path::new("/bin/true"), &own.join("program")] {
            assert_eq!(refusal(Command::new(program).status()), refused, "{}", program.display());
        }
        assert_eq!(finit_module(&module, c"", ModuleInitFlags::empty()), Err(Errno::EPERM));
        let none = None::<&str>;
        assert_eq!(mount(none, &own, Some("tmpfs"), MsFlags::empty(), none), Err(Errno::EPERM));
        assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
        // A thread it starts is no freer.
        let started = std::thread::spawn(move || refusal(Command::new("/bin/true").status()));
        assert_eq!(started.join().unwrap(), refused);
    });
    confined.join().unwrap();
}
