//! What image/build makes: nothing but the binary and modules, the same bytes each time, within the sizes promised.
//!
//! Needs `out/` and the release binary that image/build put into it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::boot::out;

/// initramfs, in bytes.
const INITRAMFS_MAX: u64 = 40 << 20;
/// The main binary without firmware, in bytes.
const BINARY_MAX: u64 = 16 << 20;

/// The binary that is in the image.
pub fn release_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/x86_64-unknown-linux-gnu/release/carena");
    assert!(path.exists(), "{} is missing: run image/build", path.display());
    path
}

fn length(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

#[test]
fn image_and_binary_are_within_their_sizes() {
    assert!(length(&out("initramfs")) <= INITRAMFS_MAX);
    // The embedded firmware is the demonstration baseline, a few kilobytes; it counts here.
    assert!(length(&release_binary()) <= BINARY_MAX);
}

/// Listed by cpio, not by us: one program, and modules with the two files that index them.
#[test]
fn the_image_holds_no_other_executable() {
    let script = "set -o pipefail; zstd -qdc \"$0\" | cpio --quiet --list --verbose --numeric-uid-gid";
    let listing = Command::new("bash").args(["-c", script]).arg(out("initramfs")).output().unwrap();
    assert!(listing.status.success());
    let listing = String::from_utf8(listing.stdout).unwrap();
    let mut programs = Vec::new();
    for line in listing.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (mode, owner, name) = (fields[0], (fields[2], fields[3]), *fields.last().unwrap());
        assert_eq!(owner, ("0", "0"), "{line}");
        match mode {
            "drwxr-xr-x" => {}
            "-rw-r--r--" if name.ends_with(".ko") => {}
            "-rw-r--r--" if name.ends_with("/modules.dep") || name.ends_with("/modules.alias") => {}
            "-rwxr-xr-x" => programs.push(name),
            _ => panic!("what is this? {line}"),
        }
    }
    assert_eq!(programs, ["init"]);
}

/// Two builds of the same binary give the same bytes, whatever the builder's habits are.
#[test]
fn the_image_is_reproducible() {
    let build = |umask: &str, zone: &str| {
        let out = tempfile::tempdir().unwrap();
        let script = "umask \"$1\"; cd /; exec \"$0\" --binary \"$2\" --out \"$3\"";
        let mut build = Command::new("bash");
        build.args(["-c", script]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("image/build"));
        build.arg(umask).arg(release_binary()).arg(out.path()).env("TZ", zone);
        let built = build.stdin(Stdio::null()).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // Sizes and digests.
        String::from_utf8_lossy(&built.stdout).into_owned()
    };
    let first = build("022", "UTC");
    assert!(first.contains("initramfs"), "{first}");
    assert_eq!(first, build("077", "Asia/Tokyo"));
}
