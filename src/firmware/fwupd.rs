//! What fwupd on a node says, in its own JSON: the devices it lists, and what its history tells of an installation.
//!
//! Read on the box, so that the engine stays small. The names are those of `fwupdtool get-devices --json`, of fwupd 1.x
//! and 2.x. It must never take a device for updatable that fwupd does not update, nor an attempt for a success.

use serde::Deserialize;

use super::component::{Component, ExitMeaning};
use super::installed::Known;
use super::outcome::Outcome;
use super::version::VersionFormat;
use crate::wire::inventory::{FwupdDevice, Inventory, Unknown};
use crate::wire::message::Installed;

/// What stands in [`Inventory::unknown`] when its devices are not known.
const FWUPD: &str = "fwupd";

/// Devices of one node; a large server has about fifty.
const DEVICES_MAX: usize = 512;

/// The program's exit codes, `fu-util-common.h`.
const NOTHING_TO_DO: i32 = 2;
const NOT_FOUND: i32 = 3;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Device {
    device_id: String,
    parent_device_id: Option<String>,
    name: Option<String>,
    vendor: Option<String>,
    plugin: Option<String>,
    guid: Vec<String>,
    protocols: Vec<String>,
    /// As fwupd 1.x tells one.
    protocol: Option<String>,
    flags: Vec<String>,
    version: Option<String>,
    version_format: Option<String>,
    version_bootloader: Option<String>,
    update_error: Option<String>,
    releases: Vec<Release>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Release {
    version: Option<String>,
}

fn listed(json: &str) -> Result<Vec<Device>, String> {
    let listed: Listed =
        serde_json::from_str(json).map_err(|error| format!("its answer is not understood: {error}"))?;
    Ok(listed.devices)
}

/// Puts what fwupd lists into a node's inventory, or why it is not known.
pub fn found(node: &mut Inventory, told: Result<String, String>) {
    node.unknown.retain(|unknown| unknown.what != FWUPD);
    node.fwupd.clear();
    match told.and_then(|json| listed(&json)) {
        Ok(devices) if devices.len() > DEVICES_MAX => {
            let why = format!("it lists {} devices, more than {DEVICES_MAX}", devices.len());
            node.unknown.push(Unknown { what: FWUPD.into(), why });
        }
        Ok(devices) => node.fwupd = devices.into_iter().map(device).collect(),
        Err(why) => node.unknown.push(Unknown { what: FWUPD.into(), why }),
    }
}

/// An inventory that was taken anew keeps what fwupd had listed before.
pub fn keep(node: &mut Inventory, before: Inventory) {
    node.unknown.extend(before.unknown.into_iter().filter(|unknown| unknown.what == FWUPD));
    node.fwupd = before.fwupd;
}

fn device(device: Device) -> FwupdDevice {
    FwupdDevice {
        id: device.device_id,
        parent: device.parent_device_id,
        name: device.name,
        vendor: device.vendor,
        plugin: device.plugin,
        guids: device.guid.iter().map(|guid| guid.to_ascii_lowercase()).collect(),
        protocols: device.protocols.into_iter().chain(device.protocol).collect(),
        flags: device.flags,
        version: device.version,
        version_format: device.version_format,
        bootloader_version: device.version_bootloader,
        update_error: device.update_error,
    }
}

fn why_unknown(node: &Inventory) -> Option<&str> {
    node.unknown.iter().find(|unknown| unknown.what == FWUPD).map(|unknown| unknown.why.as_str())
}

fn has_any(guids: &[String], device: &FwupdDevice) -> bool {
    guids.iter().any(|guid| device.guids.iter().any(|own| own.eq_ignore_ascii_case(guid)))
}

fn is_updatable(device: &FwupdDevice) -> bool {
    device.flags.iter().any(|flag| flag == "updatable")
}

/// Whether one of these GUIDs is there, of a device that fwupd updates; nothing named always fits.
///
/// # Errors
/// Why not, in words.
pub fn fit(guids: &[String], node: &Inventory) -> Result<(), String> {
    if guids.is_empty() {
        return Ok(());
    }
    let wanted = words(guids);
    if let Some(why) = why_unknown(node) {
        return Err(format!("for fwupd device {wanted}, and fwupd on the node: {why}"));
    }
    let mut there = node.fwupd.iter().filter(|device| has_any(guids, device)).peekable();
    let Some(first) = there.peek().copied() else {
        return Err(format!("for fwupd device {wanted}, the node has none of it"));
    };
    if there.any(is_updatable) {
        return Ok(());
    }
    let name = first.name.as_deref().unwrap_or(&first.id);
    let why = first.update_error.as_deref().unwrap_or("it is not updatable");
    Err(format!("for {name}, which fwupd does not update: {why}"))
}

/// Name and version of each device with one of these GUIDs. Where fwupd updates one of them, those that it does not
/// update have no say: the same device twice, or a part that only shares a GUID. While a restart is waited for, it may
/// call none of them updatable.
///
/// # Errors
/// Why it is not known, in words.
pub fn versions<'a>(guids: &[String], node: &'a Inventory) -> Result<Vec<(&'a str, Option<String>)>, String> {
    if let Some(why) = why_unknown(node) {
        return Err(format!("fwupd on the node: {why}"));
    }
    let of_guids = || node.fwupd.iter().filter(|device| has_any(guids, device));
    let has_updatable = of_guids().any(is_updatable);
    let devices = of_guids().filter(|device| !has_updatable || is_updatable(device));
    let version =
        |device: &'a FwupdDevice| (device.name.as_deref().unwrap_or(&device.id), device.version.clone());
    Ok(devices.map(version).collect())
}

/// A list of GUIDs for a person.
pub fn words(guids: &[String]) -> String {
    let shown: Vec<&str> = guids.iter().take(3).map(String::as_str).collect();
    let more = if guids.len() > shown.len() { " or others" } else { "" };
    format!("{}{more}", shown.join(" or "))
}

/// A version that was read of one of the component's devices, so that it can be compared: some cabinets give the bare
/// number that the device tells, and do not say how it is written (fwupd then goes by the device).
///
/// # Errors
/// Why it cannot be compared, in words.
pub fn comparable(component: &Component, told: String, node: &Inventory) -> Known {
    let is_it = |device: &&FwupdDevice| device.version.as_ref() == Some(&told);
    let mut devices = node.fwupd.iter().filter(|device| has_any(&component.rules.fwupd_guid, device));
    let format = devices.find(is_it).and_then(|device| device.version_format.as_deref());
    match as_number(component, &told, format) {
        Some(version) => Ok(Some(version)),
        None => Err(format!(
            "{told} is installed, which fwupd writes as {}, and {} is a bare number",
            format.unwrap_or("something unknown"),
            component.version
        )),
    }
}

/// A version that a device tells, as the component writes its own; none where that cannot be known.
fn as_number(component: &Component, told: &str, format: Option<&str>) -> Option<String> {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_bare = component.version_format == VersionFormat::Mixed && is_digits(&component.version);
    if !is_bare || is_digits(told) {
        return Some(told.to_owned());
    }
    if let Some(digits) = told.strip_prefix("0x") {
        return u32::from_str_radix(digits, 16).ok().map(|number| number.to_string());
    }
    let sections: &[u32] = match format? {
        "quad" => &[8, 8, 8, 8],
        "triplet" => &[8, 8, 16],
        "pair" => &[16, 16],
        _ => return None,
    };
    let parts: Vec<u64> = told.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    if parts.len() != sections.len() || parts.iter().zip(sections).any(|(part, bits)| part >> bits != 0) {
        return None;
    }
    let number = parts.iter().zip(sections).fold(0, |number, (part, bits)| number << bits | part);
    Some(number.to_string())
}

/// What the end of an installation by fwupd means; an error is the outcome it has then. `node` is as it was found
/// before: a device that was lost while it was written is not listed any more.
///
/// # Errors
/// [`Outcome::Failed`] when something was tried or fwupd itself fails; [`Outcome::Skipped`] and
/// [`Outcome::NotApplicable`], with fwupd's own words, when it refused before it wrote anything.
pub fn ended(
    component: &Component,
    installed: &Installed,
    node: Option<&Inventory>,
) -> Result<ExitMeaning, Outcome> {
    let history = installed.told.as_deref().map(listed);
    let last = installed.log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let its = |history: &[Device], is: &dyn Fn(&Device) -> bool| {
        history.iter().any(|device| is_of(component, device, node) && is(device))
    };
    // An entry is made before anything is written: one of this version, be it of an earlier try, and it is not said that
    // nothing was.
    let may_be_it = |device: &Device| may_be_of_version(component, device, node);
    match (installed.code, history) {
        (Some(0), Some(Ok(history))) if its(&history, &|device| may_be_it(device) && waits(device)) => {
            Ok(ExitMeaning::RebootNeeded)
        }
        // Whether it is active now is seen by the version.
        (Some(0), _) => Ok(ExitMeaning::Done),
        (Some(NOTHING_TO_DO), _) => Ok(ExitMeaning::Current),
        // It also says so of a device that did not come back from its bootloader.
        (Some(NOT_FOUND), Some(Ok(history))) if !its(&history, &|_| true) => {
            Err(Outcome::NotApplicable(format!("fwupd says: {last}")))
        }
        (Some(code), Some(Ok(history))) if code != NOT_FOUND && !its(&history, &may_be_it) => {
            Err(Outcome::Skipped(format!("fwupd refuses it, and has written nothing: {last}")))
        }
        (Some(_), Some(Ok(_))) => Err(Outcome::Failed(format!("fwupd failed: {last}"))),
        (Some(code), _) => Err(Outcome::Failed(format!("fwupd ended with exit code {code}: {last}"))),
        (None, _) => {
            let signal = installed.signal.unwrap_or_default();
            Err(Outcome::Failed(format!("fwupd was ended by signal {signal}: {last}")))
        }
    }
}

/// It is active only after a restart.
fn waits(device: &Device) -> bool {
    let later = ["needs-reboot", "needs-shutdown", "needs-activation"];
    device.flags.iter().any(|flag| later.contains(&flag.as_str()))
}

/// A line of the history is of one of this component's devices. It names a device by its id and one of its GUIDs only;
/// so where the node's devices are not known, any line may be.
fn is_of(component: &Component, device: &Device, node: Option<&Inventory>) -> bool {
    let guids = &component.rules.fwupd_guid;
    if guids.iter().any(|guid| device.guid.iter().any(|own| own.eq_ignore_ascii_case(guid))) {
        return true;
    }
    let Some(node) = node.filter(|node| why_unknown(node).is_none()) else { return true };
    node.fwupd.iter().any(|known| known.id == device.device_id && has_any(guids, known))
}

/// It is not of another version: what cannot be compared may be this one.
fn may_be_of_version(component: &Component, device: &Device, node: Option<&Inventory>) -> bool {
    let known = node.and_then(|node| node.fwupd.iter().find(|known| known.id == device.device_id));
    let format = device.version_format.as_deref().or_else(|| known?.version_format.as_deref());
    let is_other = |version: &str| {
        let order = as_number(component, version, format).and_then(|version| component.order_of(&version));
        order.is_some_and(std::cmp::Ordering::is_ne)
    };
    let mut versions = device.releases.iter().filter_map(|release| release.version.as_deref()).peekable();
    versions.peek().is_none() || versions.any(|version| !is_other(version))
}

/// A version as fwupd writes it in this format: vendors also give the bare number that the device tells
/// (fwupd's `fu_version_from_uint32`). None when it is no version of the format at all.
pub fn version(text: &str, format: VersionFormat) -> Option<String> {
    if let (VersionFormat::Mixed, Some(digits)) = (format, text.strip_prefix("0x")) {
        // Beside it stand decimal numbers.
        return u32::from_str_radix(digits, 16).ok().map(|number| number.to_string());
    }
    if format.accepts(text) {
        return Some(text.to_owned());
    }
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok()?,
        None => text.parse().ok()?,
    };
    let [a, b, c, d] = number.to_be_bytes();
    match format {
        VersionFormat::Quad => Some(format!("{a}.{b}.{c}.{d}")),
        VersionFormat::Triplet => Some(format!("{a}.{b}.{}", u16::from_be_bytes([c, d]))),
        VersionFormat::Pair => Some(format!("{}.{}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::baseline::Baseline;

    const GUID: &str = "b585990a-003e-5270-89d5-3705a17f9a43";

    fn component() -> Component {
        let text = format!(
            "id = \"b\"\nversion = \"1\"\ntitle = \"t\"\n[[component]]\nid = \"cam\"\ntitle = \"x\"\n\
             version = \"1.2.4\"\nversion_format = \"triplet\"\nformat = \"lvfs-cab\"\npayload = \"p\"\n\
             sha256 = \"{:064}\"\nsize = 1\nexpected_s = 1\nmatch = {{ fwupd_guid = [\"{GUID}\"] }}\n\
             read_back = {{ fwupd = [\"{GUID}\"] }}\n",
            0
        );
        Baseline::parse(&text, "b").unwrap().components.remove(0)
    }

    fn device(flags: &str, rest: &str) -> String {
        format!(
            "{{\"Devices\":[{{\"DeviceId\":\"08d4\",\"Name\":\"Webcam\",\"Guid\":[\"{}\"],\"Flags\":[{flags}]{rest}}}]}}",
            GUID.to_uppercase()
        )
    }

    #[test]
    fn a_device_fits_only_where_fwupd_lists_and_updates_it() {
        let guids = [GUID.to_owned()];
        let fits = |told: Result<String, String>| {
            let mut node = Inventory::default();
            found(&mut node, told);
            fit(&guids, &node)
        };
        assert_eq!(fits(Ok(device("\"internal\",\"updatable\"", ""))), Ok(()));
        let why = |told| fits(told).unwrap_err();
        let for_it = format!("for fwupd device {GUID}, ");
        assert_eq!(why(Ok("{\"Devices\":[]}".into())), format!("{for_it}the node has none of it"));
        assert_eq!(why(Err("not installed".into())), format!("{for_it}and fwupd on the node: not installed"));
        assert!(why(Ok("Warning".into())).contains("its answer is not understood"));
        let locked = device("\"updatable-hidden\"", ",\"UpdateError\":\"it is on battery\"");
        assert_eq!(why(Ok(locked)), "for Webcam, which fwupd does not update: it is on battery");
    }

    #[test]
    fn what_was_known_before_is_forgotten_when_it_is_asked_again() {
        let mut node = Inventory::default();
        found(&mut node, Err("not installed".into()));
        found(&mut node, Ok(device("\"updatable\"", ",\"Version\":\"1.2.3\"")));
        assert_eq!(versions(&[GUID.into()], &node), Ok(vec![("Webcam", Some("1.2.3".into()))]));
        found(&mut node, Err("busy".into()));
        assert_eq!(versions(&[GUID.into()], &node), Err("fwupd on the node: busy".into()));
        assert_eq!(node.fwupd, []);
    }

    #[test]
    fn of_twins_those_count_that_fwupd_updates() {
        let one = |flags: &str, version: &str| {
            format!("{{\"Guid\":[\"{GUID}\"],\"Name\":\"W\",\"Flags\":[{flags}],\"Version\":\"{version}\"}}")
        };
        let versions = |devices: &[String]| {
            let mut node = Inventory::default();
            found(&mut node, Ok(format!("{{\"Devices\":[{}]}}", devices.join(","))));
            let told = versions(&[GUID.into()], &node).unwrap();
            told.into_iter().filter_map(|(_, version)| version).collect::<Vec<_>>()
        };
        let (twin, updatable) = (one("\"internal\"", "1.0.0"), one("\"updatable\"", "1.2.3"));
        assert_eq!(versions(&[twin.clone(), updatable]), ["1.2.3"]);
        assert_eq!(versions(&[twin]), ["1.0.0"], "while a restart is waited for");
    }

    #[test]
    fn a_bare_number_is_compared_in_the_devices_own_format() {
        let mut component = component();
        (component.version, component.version_format) = ("16909060".into(), VersionFormat::Mixed);
        let read = |told: &str, format: &str| {
            let mut node = Inventory::default();
            let rest = format!(",\"Version\":\"{told}\",\"VersionFormat\":\"{format}\"");
            found(&mut node, Ok(device("\"updatable\"", &rest)));
            comparable(&component, told.into(), &node)
        };
        for (told, format) in [
            ("1.2.3.4", "quad"),
            ("1.2.772", "triplet"),
            ("258.772", "pair"),
            ("0x01020304", "hex"),
            ("16909060", "number"),
        ] {
            assert_eq!(read(told, format), Ok(Some("16909060".into())), "{told}");
        }
        assert_eq!(read("1.2.3.3", "quad"), Ok(Some("16909059".into())));
        for (told, format) in [("1.2.3.4", "bcd"), ("1.2.3", "quad"), ("256.0.0.0", "quad"), ("A", "quad")] {
            assert!(read(told, format).unwrap_err().contains("bare number"), "{told} as {format}");
        }
        component.version = "1.2.3.4".into();
        assert_eq!(comparable(&component, "1.2".into(), &Inventory::default()), Ok(Some("1.2".into())));
    }

    #[test]
    fn a_failed_write_is_a_failure_where_the_history_does_not_say_otherwise() {
        let mut node = Inventory::default();
        found(&mut node, Ok(device("\"updatable\"", ",\"VersionFormat\":\"quad\"")));
        let mut component = component();
        let line = |id: &str, guid: &str, version: &str| {
            format!(
                "{{\"Devices\":[{{\"DeviceId\":\"{id}\",\"Guid\":[\"{guid}\"],\"Releases\":[{{\"Version\":\"{version}\"}}]}}]}}"
            )
        };
        let ended = |component: &Component, code: i32, told: String, node: Option<&Inventory>| {
            let (log, logs) = ("it went wrong\n".to_owned(), Vec::new());
            let installed =
                Installed { code: Some(code), signal: None, log, seconds: 1, told: Some(told), logs };
            match ended(component, &installed, node).unwrap_err() {
                Outcome::Failed(why) => {
                    assert_eq!(why, "fwupd failed: it went wrong");
                    "failed"
                }
                Outcome::Skipped(_) => "skipped",
                Outcome::NotApplicable(_) => "not-applicable",
                other => panic!("{other:?}"),
            }
        };
        let other = "ddc0ee61-e7f0-4e7d-acc5-c070a398838e";
        // It did not come back from its bootloader.
        assert_eq!(ended(&component, 3, line("08d4", GUID, "1.2.4"), Some(&node)), "failed");
        assert_eq!(ended(&component, 3, line("ffff", other, "1.2.4"), Some(&node)), "not-applicable");
        // Known by its id where the history names another of its GUIDs, and not known where it was never listed.
        assert_eq!(ended(&component, 1, line("08d4", other, "1.2.4"), Some(&node)), "failed");
        assert_eq!(ended(&component, 1, line("ffff", other, "1.2.4"), Some(&node)), "skipped");
        assert_eq!(ended(&component, 1, line("ffff", other, "1.2.4"), None), "failed");
        // Versions that cannot be compared, or only in the device's format.
        assert_eq!(ended(&component, 1, line("08d4", GUID, "one"), Some(&node)), "failed");
        (component.version, component.version_format) = ("16909060".into(), VersionFormat::Mixed);
        assert_eq!(ended(&component, 1, line("08d4", GUID, "1.2.3.4"), Some(&node)), "failed");
        assert_eq!(ended(&component, 1, line("08d4", GUID, "1.2.3.3"), Some(&node)), "skipped");
    }

    #[test]
    fn an_end_means_what_fwupds_history_says_of_it() {
        let component = component();
        let ended = |code: i32, told: Option<String>| {
            let log = "Writing: 3%\nit does not fit\n".to_owned();
            ended(
                &component,
                &Installed { code: Some(code), signal: None, log, seconds: 1, told, logs: Vec::new() },
                Some(&Inventory::default()),
            )
        };
        let history = |flags: &str, state: u32, version: &str| {
            let rest = format!(
                ",\"UpdateState\":{state},\"UpdateError\":\"no power\",\"Releases\":[{{\"Version\":\"{version}\"}}]"
            );
            Some(device(flags, &rest))
        };
        let nothing = || Some("{\"Error\":{\"Code\":9}}".to_owned());
        assert_eq!(ended(0, history("\"updatable\"", 2, "1.2.4")), Ok(ExitMeaning::Done));
        assert_eq!(ended(0, history("\"needs-reboot\"", 4, "1.2.4")), Ok(ExitMeaning::RebootNeeded));
        assert_eq!(
            ended(0, history("\"needs-reboot\"", 4, "1.2.3")),
            Ok(ExitMeaning::Done),
            "of an earlier one"
        );
        assert_eq!(ended(0, None), Ok(ExitMeaning::Done));
        assert_eq!(ended(2, None), Ok(ExitMeaning::Current));
        assert_eq!(ended(3, nothing()), Err(Outcome::NotApplicable("fwupd says: it does not fit".into())));
        let failed = |why: &str| Err(Outcome::Failed(why.into()));
        assert_eq!(ended(3, None), failed("fwupd ended with exit code 3: it does not fit"));
        assert_eq!(ended(1, history("", 3, "1.2.4")), failed("fwupd failed: it does not fit"));
        let refused = "fwupd refuses it, and has written nothing: it does not fit";
        assert_eq!(ended(1, nothing()), Err(Outcome::Skipped(refused.into())));
        assert_eq!(ended(1, None), failed("fwupd ended with exit code 1: it does not fit"));
    }

    #[test]
    fn a_bare_number_is_written_as_fwupd_writes_it() {
        for (number, format, written) in [
            ("16909060", VersionFormat::Quad, "1.2.3.4"),
            ("0x01020304", VersionFormat::Triplet, "1.2.772"),
            ("0x01020304", VersionFormat::Pair, "258.772"),
            ("1.2.3", VersionFormat::Triplet, "1.2.3"),
            ("7", VersionFormat::Number, "7"),
            ("0x01020304", VersionFormat::Mixed, "16909060"),
        ] {
            assert_eq!(version(number, format).as_deref(), Some(written));
        }
        assert_eq!(version("1.2", VersionFormat::Triplet), None);
    }
}
