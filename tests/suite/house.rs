//! The house rules that a build must hold: one provider of cryptography, two static binaries, sizes within their limits.

use std::path::Path;
use std::process::Command;

/// The build script itself, so that what refuses a lock file is what is tested.
#[path = "../../build.rs"]
#[allow(dead_code)] // only its check of the lock file is called here
mod build_script;

#[test]
fn the_build_fails_when_a_second_crypto_provider_slips_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    build_script::one_provider(root).unwrap();
    let planted = tempfile::tempdir().unwrap();
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    for foreign in build_script::FOREIGN_PROVIDERS {
        let text = format!("{lock}\n[[package]]\nname = \"{foreign}\"\nversion = \"1.0.0\"\n");
        std::fs::write(planted.path().join("Cargo.lock"), text).unwrap();
        let refused = build_script::one_provider(planted.path()).unwrap_err();
        assert!(refused.contains(foreign), "{refused}");
    }
}

#[test]
fn the_binary_is_static() {
    let headers = Command::new("readelf").args(["-lW", env!("CARGO_BIN_EXE_carena")]).output().unwrap();
    let headers = String::from_utf8(headers.stdout).unwrap();
    assert!(headers.contains("LOAD") && !headers.contains("INTERP"), "{headers}");
}

#[test]
fn no_source_holds_a_control_character() {
    // One that slipped into a script in place of a back-reference made a blocking firewall look like none.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files =
        Command::new("git").args(["ls-files", "src", "image", "tests"]).current_dir(root).output().unwrap();
    let files: Vec<_> = String::from_utf8(files.stdout).unwrap().lines().map(str::to_owned).collect();
    assert!(files.len() > 100, "{files:?}");
    for file in files {
        let Ok(text) = std::fs::read_to_string(root.join(&file)) else { continue };
        let found = text.char_indices().find(|(_, c)| c.is_control() && !matches!(c, '\n' | '\t'));
        assert_eq!(found, None, "{file}");
    }
}
