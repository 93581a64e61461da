//! Builds the engine and packs it, with the firmware cache, into the main binary.
//!
//! The engine is the same package with the feature `engine` only, in a profile of its own, in a target directory of
//! its own (the outer cargo holds the lock of the first). When the engine itself is being built there is nothing
//! to do. Also refuses a second cryptography provider: the lock file may name ring only.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

// The binary carries payloads in the very form in which the store keeps them.
#[path = "src/cache/pack.rs"]
mod pack;
#[path = "src/cache/seek_table.rs"]
#[allow(dead_code)] // nothing is read back here
mod seek_table;

/// Another directory to embed baselines from.
const FIRMWARE_VARIABLE: &str = "CARENA_FIRMWARE_CACHE";

/// zstd's level for what is embedded: packed once, carried for ever.
const FIRMWARE_LEVEL: i32 = 19;

/// The window that the node's unpacker keeps: 256 KiB.
const ENGINE_WINDOW_LOG: u32 = 18;

/// Packages that would bring a second TLS or SSH provider in.
pub const FOREIGN_PROVIDERS: [&str; 6] =
    ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "libssh2-sys", "boring-sys"];

fn main() {
    if let Err(error) = run() {
        println!("cargo::error={error}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    one_provider(&root)?;
    if env::var_os("CARGO_FEATURE_BOX").is_none() {
        if variable("PROFILE")? == "release" {
            link_small(&root);
        }
        return Ok(());
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    let engine = build_engine(&root, &out)?;
    let packed = pack_engine(&read(&engine)?).map_err(|e| format!("compressing the engine: {e}"))?;
    write(&out.join("carena-engine.zst"), &packed)?;
    println!("cargo::rerun-if-env-changed={FIRMWARE_VARIABLE}");
    let firmware = env::var_os(FIRMWARE_VARIABLE).map_or_else(|| root.join("firmware-cache"), PathBuf::from);
    pack_firmware(&firmware, &out.join("firmware-cache"))
}

/// Refuses a lock file that names a second provider.
pub fn one_provider(root: &Path) -> Result<(), String> {
    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = String::from_utf8_lossy(&read(&lock)?).into_owned();
    match FOREIGN_PROVIDERS.iter().find(|name| text.contains(&format!("name = \"{name}\"\n"))) {
        Some(name) => {
            Err(format!("Cargo.lock has {name}: ring is the only provider of TLS and SSH cryptography"))
        }
        None => Ok(()),
    }
}

/// How the engine that travels is linked: relocations as a bitmap instead of 24 bytes each (`DT_RELR`), and no tables for
/// unwinding, for which its profile has no use.
fn link_small(root: &Path) {
    let sections = root.join("src/engine/sections.ld");
    println!("cargo::rerun-if-changed={}", sections.display());
    let script = format!("-T,{}", sections.display());
    for argument in ["-z,pack-relative-relocs", "--no-eh-frame-hdr", script.as_str()] {
        println!("cargo::rustc-link-arg-bin=carena-engine=-Wl,{argument}");
    }
}

fn build_engine(root: &Path, out: &Path) -> Result<PathBuf, String> {
    for path in [
        "src/engine",
        "src/wire",
        "src/lib.rs",
        "src/digest.rs",
        "src/durable.rs",
        "src/error.rs",
        "src/paths.rs",
        "src/secret.rs",
        "Cargo.toml",
        ".cargo/config.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    // OUT_DIR is <target>[/<triple>]/<profile>/build/carena-<hash>/out; one engine serves all profiles.
    let profiles = out.ancestors().nth(4).ok_or("OUT_DIR is too short")?;
    let target = profiles.join("engine");
    let triple = variable("TARGET")?;
    let mut cargo = Command::new(OsString::from(variable("CARGO")?));
    cargo
        .args([
            "build",
            "--locked",
            "--bin",
            "carena-engine",
            "--no-default-features",
            "--features",
            "engine",
        ])
        .args(["--profile", "engine", "--target", &triple, "--target-dir"])
        .arg(&target)
        .current_dir(root)
        // Set when a linter drives the outer build; the engine must be the real compiler's.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_FEATURE_") || text.starts_with("CARGO_CFG_") {
            cargo.env_remove(&name);
        }
    }
    #[expect(clippy::disallowed_methods, reason = "a build script builds")]
    let done = cargo.output().map_err(|e| format!("starting cargo for the engine: {e}"))?;
    if !done.status.success() {
        return Err(format!("the engine does not build:\n{}", String::from_utf8_lossy(&done.stderr))
            .replace('\n', " | "));
    }
    Ok(target.join(triple).join("engine").join("carena-engine"))
}

/// A small window costs 1.5 % of the size, and spares the node's unpacker memory that would have to be cleared for it.
fn pack_engine(engine: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packer = zstd::bulk::Compressor::new(19)?;
    packer.window_log(ENGINE_WINDOW_LOG)?;
    packer.compress(engine)
}

/// Each baseline's manifest as it is, each payload once, named by its SHA-256 and packed; and the source text that puts
/// them into the binary, where nothing unpacks them before they are asked for.
fn pack_firmware(from: &Path, to: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", from.display());
    let _ = fs::remove_dir_all(to);
    create(&to.join("baselines"))?;
    create(&to.join("objects"))?;
    let (mut manifests, mut objects) = (Vec::new(), Vec::new());
    for baseline in list(from)? {
        if !baseline.is_dir() {
            continue;
        }
        let name = baseline.file_name().and_then(|name| name.to_str()).ok_or("a baseline without a name")?;
        let packed = to.join("baselines").join(name);
        create(&packed)?;
        for file in list(&baseline)? {
            if file.extension().is_some_and(|e| e == "toml") {
                let target = packed.join(file.file_name().unwrap_or_default());
                write(&target, &read(&file)?)?;
                manifests.push((name.to_owned(), target));
            } else {
                objects.push(pack_payload(&file, &to.join("objects"))?);
            }
        }
    }
    objects.sort();
    objects.dedup();
    let mut text = String::new();
    let mut table = |name, kind, include, rows: &[(String, PathBuf)]| {
        let _ = write!(text, "static {name}: &[{kind}] = &[");
        for (name, path) in rows {
            let _ = write!(text, "({name:?}, {include}!({path:?})),");
        }
        text.push_str("];\n");
    };
    table("MANIFESTS", "Manifest", "include_str", &manifests);
    table("OBJECTS", "Packed", "include_bytes", &objects);
    write(&to.with_file_name("firmware.rs"), text.as_bytes())
}

/// Packs one payload into a directory; its name and its file. Packed from the same bytes it is the same bytes.
fn pack_payload(file: &Path, into: &Path) -> Result<(String, PathBuf), String> {
    let failed = |e: std::io::Error| format!("packing {}: {e}", file.display());
    let digest = || ring::digest::Context::new(&ring::digest::SHA256);
    let (mut of_content, mut of_frames) = (digest(), digest());
    let (mut packed, mut table) = (Vec::new(), seek_table::SeekTable::new());
    let source = fs::File::open(file).map_err(failed)?;
    let packing = pack::Packing::at_level(FIRMWARE_LEVEL);
    let content = |bytes: &[u8]| of_content.update(bytes);
    let frame = |frame: &[u8], content| {
        of_frames.update(frame);
        table.push(frame.len(), content);
        packed.extend_from_slice(frame);
        Ok(())
    };
    pack::pack(source, packing, content, frame).map_err(failed)?;
    let mut tag = seek_table::Tag::default();
    tag.iter_mut().zip(of_frames.finish().as_ref()).for_each(|(to, from)| *to = *from);
    packed.extend(table.tail(tag));
    let hex: String = of_content.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let target = into.join(format!("{hex}.zst"));
    write(&target, &packed)?;
    Ok((hex, target))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    #[expect(clippy::disallowed_methods, reason = "cargo discards what a failed build script wrote")]
    let written = fs::write(path, bytes);
    written.map_err(|e| format!("{}: {e}", path.display()))
}

fn create(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn list(path: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}
