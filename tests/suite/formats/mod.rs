//! Firmware formats: real files, made or shipped by the tools of their own worlds, which are also the judges.

pub mod catalogue;
mod hostile;
mod lvfs;
mod packages;
pub mod pldm;
pub mod vendors;

use std::path::Path;
use std::process::{Command, Output};

use carena::firmware::formats::metadata::{Payload, Rule};
use carena::firmware::formats::{FormatError, Metadata, Package, Trust};

/// Runs a tool that must succeed, in a directory; what it printed.
pub fn tool(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = run(directory, program, arguments);
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{error}");
    out.into_owned()
}

/// Runs a tool, in a directory, whatever becomes of it.
pub fn run(directory: &Path, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env("LC_ALL", "C").env("TZ", "UTC");
    command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// A line of bash that must succeed.
pub fn bash(directory: &Path, line: &str) -> String {
    tool(directory, "bash", &["-euc", line])
}

/// Reads a file as the product does, with no certificate.
pub fn read(path: &Path) -> Result<Package, FormatError> {
    carena::firmware::formats::read(path, &Trust::default())
}

/// Reads a file that must be good and brings one component.
pub fn one(path: &Path) -> (Metadata, Vec<Payload>) {
    let mut package = read(path).unwrap_or_else(|error| panic!("{}", carena::error::explain(&error)));
    assert_eq!(package.components.len(), 1, "{:?}", package.components);
    (package.components.remove(0), package.payloads)
}

/// Reads a file that must be refused; the whole sentence.
pub fn refusal(path: &Path) -> String {
    match read(path) {
        Ok(package) => panic!("{} was read: {package:?}", path.display()),
        Err(error) => carena::error::explain(&error),
    }
}

/// `carena firmware show`: exit code, standard output and standard error.
pub fn show(arguments: &[&str]) -> (i32, String, String) {
    let mut all = vec!["firmware", "show"];
    all.extend(arguments);
    let output = run(Path::new("/"), env!("CARGO_BIN_EXE_carena"), &all);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// As an object.
pub fn show_json(arguments: &[&str]) -> serde_json::Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    let (exit, out, error) = show(&all);
    assert_eq!(exit, 0, "{error}");
    serde_json::from_str(&out).unwrap()
}

/// The rules of a component's targets.
pub fn rules(component: &Metadata) -> Vec<Rule> {
    component.targets.iter().map(|target| target.rule.clone()).collect()
}

/// Bytes that do not compress, the same each time.
pub fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    (0..length).map(|_| next()).collect()
}
