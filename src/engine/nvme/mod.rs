//! Firmware of NVMe controllers, by the kernel's admin ioctl: no tool, and no vendor's program.
//!
//! NVM Express Base Specification 2.0. The disks of a model that were planned are brought to one revision, one after the
//! other. It must never write any other, nor reset one: a disk that is in use is reset by nobody but the restart of its
//! node.

mod admin;
mod update;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::log::Log;
use super::session::{Done, Worker};
use crate::wire::message::{Installed, Nvme};
use admin::{Device, Identity};
use update::Ended;

/// The controllers of the kernel.
const CLASS: &str = "/sys/class/nvme";

/// The firmware revision that a controller, as "nvme0", tells now: what sysfs has may be what it was at boot.
pub fn revision(controller: &str) -> Option<String> {
    let identity = Identity::ask(&mut Device::open(controller).ok()?).ok()?;
    (!identity.revision.is_empty()).then_some(identity.revision)
}

/// Writes the image to the planned disks of the model; one that fails keeps the others from nothing.
pub fn install(what: &Nvme, image: &Path, worker: &Worker) -> Installed {
    let (began, mut log) = (Instant::now(), Log::new());
    let (mut worst, mut failed, mut told) = (None, None, None::<Instant>);
    for controller in controllers(Path::new(CLASS), &what.model) {
        let mut tell = |line: String| {
            log.take(format!("{controller}: {line}\n").as_bytes());
            if told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
                told = Some(Instant::now());
                worker.tell(Done::Installing { seconds: began.elapsed().as_secs(), line: log.last_line() });
            }
        };
        match update::update(&controller, what, image, &mut tell) {
            Ok(ended) => {
                tell(ended.words().to_owned());
                worst = worst.max(Some(ended));
            }
            Err(why) => {
                tell(why.clone());
                failed = Some(format!("{controller}: {why}"));
            }
        }
    }
    let code = match (&failed, worst) {
        (Some(_), _) => Nvme::FAILED,
        (None, None) => Nvme::NONE,
        (None, Some(Ended::WasThere | Ended::Left)) => Nvme::CURRENT,
        (None, Some(Ended::AfterRestart)) => Nvme::AFTER_RESTART,
    };
    // What failed stands last, where it is looked for.
    log.take(failed.unwrap_or_default().as_bytes());
    let seconds = began.elapsed().as_secs();
    Installed { code: Some(code), signal: None, log: log.text(), seconds, told: None, logs: Vec::new() }
}

/// Controllers of this model that are disks of this machine, one of each subsystem: two ports of one disk share its firmware.
fn controllers(class: &Path, model: &str) -> Vec<String> {
    let attribute = |path: &PathBuf, name: &str| {
        let text = std::fs::read_to_string(path.join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(class).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    // Kernels before 4.13 have no other transport, and do not say so.
    paths.retain(|path| {
        attribute(path, "model") == model && ["", "pcie"].contains(&attribute(path, "transport").as_str())
    });
    let mut subsystems = Vec::new();
    paths.retain(|path| {
        let subsystem = attribute(path, "subsysnqn");
        let is_new = subsystem.is_empty() || !subsystems.contains(&subsystem);
        subsystems.push(subsystem);
        is_new
    });
    let name = |path: PathBuf| path.file_name()?.to_str().map(str::to_owned);
    paths.into_iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_disks_of_the_model_are_taken_each_once() {
        let class = tempfile::tempdir().unwrap();
        let put = |controller: &str, name: &str, text: &str| {
            let path = class.path().join(controller);
            std::fs::create_dir_all(&path).unwrap();
            crate::durable::write(&path.join(name), text.as_bytes(), 0o644).unwrap();
        };
        for (controller, model, transport, subsystem) in [
            ("nvme0", "MODEL X    ", "pcie", "nqn.a"),
            ("nvme1", "MODEL X", "pcie", "nqn.a"),
            ("nvme2", "MODEL Y", "pcie", "nqn.b"),
            ("nvme3", "MODEL X", "tcp", "nqn.c"),
            ("nvme4", "MODEL X", "pcie", "nqn.d"),
        ] {
            put(controller, "model", model);
            put(controller, "transport", transport);
            put(controller, "subsysnqn", subsystem);
        }
        assert_eq!(controllers(class.path(), "MODEL X"), ["nvme0", "nvme4"]);
    }
}
