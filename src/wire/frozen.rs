//! Protocol 1 as bytes. **If this test fails, do not change the test**: a box must understand every engine it ever
//! left on a node, and an engine every box. What is new gets lines of its own; what is here stays for ever.

use super::claim::Claim;
use super::frame::{self, HEADER_BYTES};
use super::message::{FromEngine, StartConfig, Started, ToEngine};

const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Every request, by the number of its line.
const REQUESTS: &[&str] = &[
    r#"{"id":0,"request":{"hello":{"protocol":1,"deployment":"0190-a"}}}"#,
    r#"{"id":1,"request":"renew"}"#,
    r#"{"id":2,"request":"inventory"}"#,
    r#"{"id":3,"request":{"read-back":{"file":"/etc/version"}}}"#,
    r#"{"id":4,"request":{"read-back":{"command":["tool","-v"]}}}"#,
    r#"{"id":5,"request":{"fetch":{"sha256":"ZEROS","size":9,"address":"fe80::1%eth0","port":63002,"server_name":"box-0.0190-a.carena","path":"/payload/x"}}}"#,
    r#"{"id":6,"request":{"install":{"component":"bios","sha256":"ZEROS","how":{"command":["/bin/sh","{payload}"]},"expected_s":60}}}"#,
    r#"{"id":7,"request":"cancel"}"#,
    r#"{"id":8,"request":"stop"}"#,
    r#"{"id":9,"request":{"probe":{"address":"fd00::1","port":63002,"bound_ms":1500}}}"#,
    r#"{"id":10,"request":{"push":{"sha256":"ZEROS","size":9}}}"#,
    r#"{"id":11,"request":"status"}"#,
    r#"{"id":12,"request":{"outcome":{"component":"bios"}}}"#,
    r#"{"id":13,"request":{"abandon":{"sha256":"ZEROS"}}}"#,
    r#"{"id":14,"request":"fwupd"}"#,
    r#"{"id":15,"request":{"install":{"component":"cab","sha256":"ZEROS","how":{"fwupd":{"older":false,"reinstall":true}},"expected_s":60}}}"#,
    r#"{"id":16,"request":{"install":{"component":"disk","sha256":"ZEROS","how":{"nvme":{"model":"M","version":"2","disks":[{"serial":"S","revision":"1"}]}},"expected_s":60}}}"#,
    r#"{"id":17,"request":{"install":{"component":"bios","sha256":"ZEROS","how":{"command":["{payload}","-s"]},"expected_s":60,"logs":["/var/cpq/Component.log"]}}}"#,
];

/// Every reply and notice.
const ANSWERS: &[&str] = &[
    r#"{"reply":{"id":0,"reply":{"hello":{"protocol":1,"deployment":"0190-a","installing":null}}}}"#,
    r#"{"reply":{"id":0,"reply":{"hello":{"protocol":1,"deployment":"0190-a","installing":"bios"}}}}"#,
    r#"{"reply":{"id":1,"reply":"done"}}"#,
    r#"{"reply":{"id":3,"reply":{"version":null}}}"#,
    r#"{"reply":{"id":3,"reply":{"version":"1.2"}}}"#,
    r#"{"reply":{"id":5,"reply":{"fetched":{"bytes":9,"resumes":1}}}}"#,
    r#"{"reply":{"id":6,"reply":{"installed":{"code":0,"signal":null,"log":"ok\n","seconds":3}}}}"#,
    r#"{"reply":{"id":6,"reply":{"failed":{"kind":"refused","message":"no"}}}}"#,
    r#"{"reply":{"id":6,"reply":{"failed":{"kind":"unreachable","message":"no"}}}}"#,
    r#"{"reply":{"id":6,"reply":{"failed":{"kind":"corrupt","message":"no"}}}}"#,
    r#"{"reply":{"id":6,"reply":{"failed":{"kind":"node","message":"no"}}}}"#,
    r#"{"reply":{"id":6,"reply":{"failed":{"kind":"cancelled","message":"no"}}}}"#,
    r#"{"reply":{"id":9,"reply":{"probed":{"blocked":null}}}}"#,
    r#"{"reply":{"id":9,"reply":{"probed":{"blocked":"timed out"}}}}"#,
    r#"{"reply":{"id":11,"reply":{"status":{"deployment":"0190-a","seconds":5,"installing":{"component":"bios","seconds":2},"transfers":[{"sha256":"ZEROS","done":1,"total":9,"seconds":1}],"installed":["nic"]}}}}"#,
    r#"{"reply":{"id":14,"reply":{"fwupd":"{\"Devices\":[]}"}}}"#,
    r#"{"reply":{"id":15,"reply":{"installed":{"code":0,"signal":null,"log":"ok\n","seconds":3,"told":"{}"}}}}"#,
    r#"{"notice":{"id":5,"notice":{"fetching":{"done":1,"total":9}}}}"#,
    r#"{"notice":{"id":6,"notice":{"installing":{"seconds":2,"line":"writing"}}}}"#,
    r#"{"notice":{"id":10,"notice":{"pushed":{"done":1}}}}"#,
    r#"{"reply":{"id":16,"reply":{"installed":{"code":6,"signal":null,"log":"no\n","seconds":3,"logs":[{"path":"/var/cpq/Component.log","text":"why\n"}]}}}}"#,
];

/// An inventory: all of it, and what an older or newer engine may leave out.
const INVENTORY: &str = r#"{"reply":{"id":2,"reply":{"inventory":{"os":{"id":"debian","version":"12","name":"Debian","kernel":"6.1","arch":"x86_64","host":"n"},"dmi":{"vendor":"V","product":null,"sku":null,"serial":null,"board":null,"bios_vendor":null,"bios_version":"1","bios_date":null},"pci":[{"address":"0000:00:00.0","vendor":"8086","device":"1237","subsystem_vendor":"1af4","subsystem_device":"1100","class":"060000","driver":null}],"network":[{"name":"eth0","mac":"02:00:00:00:00:01","driver":"veth","driver_version":null,"firmware_version":null,"bus":null}],"disks":[{"name":"sda","kind":"scsi","model":null,"serial":null,"firmware_version":null,"bytes":512}],"unknown":[{"what":"dmi.serial","why":"permission denied"}]}}}}"#;

/// The firmware of a machine; a machine that shows none of it says nothing.
const MACHINE: &str = r#"{"reply":{"id":2,"reply":{"inventory":{"os":{"id":"debian","version":"12","name":"Debian","kernel":"6.1","arch":"x86_64","host":"n"},"dmi":{"vendor":null,"product":null,"sku":null,"serial":null,"board":null,"bios_vendor":null,"bios_version":null,"bios_date":null},"pci":[],"network":[],"disks":[],"storage":[{"name":"host0","driver":"smartpqi","bus":"0000:5c:00.0","model":null,"firmware_version":"5.00-0"}],"esrt":[{"guid":"ddc0ee61-e7f0-4e7d-acc5-c070a398838e","kind":1,"version":131089,"lowest_supported":null,"last_attempt_version":null,"last_attempt_status":0}],"microcode":"0x2006e05","bmc":{"firmware_version":"2.72","aux_version":null,"manufacturer":"0x00000b","product":null,"ipmi_version":"2.0"},"unknown":[]}}}}"#;

const START: &str = r#"{"protocol":1,"deployment":"0190-a","certificate_pem":"c","key_pem":"k","ca_pem":"a","port":62286,"lease_s":300,"box_address":"fd00::1"}"#;
const STARTED: &str = r#"{"pid":7,"start_time":8,"port":62286}"#;

fn same<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) {
    let text = text.replace("ZEROS", ZEROS);
    let message: T = frame::decode(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error:?}"));
    let encoded = frame::encode(&message).unwrap();
    let (header, body) = encoded.split_at(HEADER_BYTES);
    assert_eq!(std::str::from_utf8(body).unwrap(), text);
    assert_eq!(header, u32::try_from(text.len()).unwrap().to_be_bytes());
}

#[test]
fn every_message_has_the_bytes_it_always_had() {
    REQUESTS.iter().for_each(|text| same::<ToEngine>(text));
    ANSWERS.iter().for_each(|text| same::<FromEngine>(text));
    same::<FromEngine>(INVENTORY);
    same::<FromEngine>(MACHINE);
    same::<StartConfig>(START);
    same::<Started>(STARTED);
}

#[test]
fn stop_and_a_piece_are_these_bytes() {
    let stop: ToEngine = serde_json::from_str(REQUESTS[8]).unwrap();
    assert_eq!(frame::encode(&stop).unwrap(), b"\x00\x00\x00\x19{\"id\":8,\"request\":\"stop\"}");
    assert_eq!(frame::encode_chunk(10, b"abc").unwrap(), b"\x80\x00\x00\x07\x00\x00\x00\x0aabc");
}

#[test]
fn what_a_newer_side_adds_is_skipped() {
    let hello = r#"{"reply":{"id":0,"reply":{"hello":{"protocol":9,"deployment":"x","installing":null,"new":[1]}},"more":true}}"#;
    assert!(frame::decode::<FromEngine>(hello.as_bytes()).is_ok());
    let failed = r#"{"reply":{"id":6,"reply":{"failed":{"kind":"never-seen","message":"no"}}}}"#;
    assert!(frame::decode::<FromEngine>(failed.as_bytes()).is_ok());
    assert!(frame::decode::<FromEngine>(br#"{"reply":{"id":2,"reply":{"inventory":{}}}}"#).is_ok());
}

#[test]
fn a_claim_has_the_name_it_always_had() {
    let claim = Claim::parse("@carena-engine/1/0190-a/1790000000/fd00::1").unwrap();
    assert_eq!((claim.protocol, claim.since), (1, 1_790_000_000));
    assert_eq!(claim.name(), "carena-engine/1/0190-a/1790000000/fd00::1");
}
