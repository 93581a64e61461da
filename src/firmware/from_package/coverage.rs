//! How far the rules of two packages reach: whether one is for every machine that another is for, or for some of them.
//!
//! Makers name things alike that are not: every BIOS of Dell's is component 159. So a name alone links nothing, it takes
//! the machines too. What cannot be told counts as another machine.

use crate::firmware::rules::{PciId, Rules};

/// Whether `wide` fits every node that `narrow` fits.
pub fn covers(wide: &Rules, narrow: &Rules) -> bool {
    let one = |wide: &Option<String>, narrow: &Option<String>| wide.is_none() || wide == narrow;
    one(&wide.os, &narrow.os)
        && one(&wide.arch, &narrow.arch)
        && one(&wide.dmi_vendor, &narrow.dmi_vendor)
        && one(&wide.dmi_product, &narrow.dmi_product)
        && (wide.maker.is_none() || wide.maker == narrow.maker)
        && (wide.package_tool.is_none() || wide.package_tool == narrow.package_tool)
        && all(&wide.pci, &narrow.pci, is_function_of)
        && all(&wide.disk_model, &narrow.disk_model, PartialEq::eq)
        && all(&wide.guid, &narrow.guid, PartialEq::eq)
        && all(&wide.fwupd_guid, &narrow.fwupd_guid, PartialEq::eq)
        && all(&wide.rom_family, &narrow.rom_family, PartialEq::eq)
        && all(&wide.dell_system, &narrow.dell_system, PartialEq::eq)
}

/// Takes the machines that `newer` is for out of `older`; false when that cannot be said in rules. A machine has one system
/// id and one ROM, so those alone can be divided: of devices it may have both.
pub fn narrow(older: &mut Rules, newer: &Rules) -> bool {
    let mut rest = older.clone();
    rest.dell_system.retain(|system| !newer.dell_system.contains(system));
    rest.rom_family.retain(|family| !newer.rom_family.contains(family));
    let divided =
        [(rest.dell_system.len(), older.dell_system.len()), (rest.rom_family.len(), older.rom_family.len())];
    let is_divided = divided.iter().filter(|(left, before)| left < before).count() == 1
        && divided.iter().all(|(left, before)| *left > 0 || *before == 0);
    let mut common = older.clone();
    common.dell_system.retain(|system| newer.dell_system.contains(system));
    common.rom_family.retain(|family| newer.rom_family.contains(family));
    if is_divided && covers(newer, &common) {
        *older = rest;
        return true;
    }
    false
}

/// Nothing listed is everything.
fn all<T>(wide: &[T], narrow: &[T], is: impl Fn(&T, &T) -> bool) -> bool {
    wide.is_empty() || !narrow.is_empty() && narrow.iter().all(|one| wide.iter().any(|other| is(other, one)))
}

/// A function is also named without its subsystem.
fn is_function_of(wide: &PciId, narrow: &PciId) -> bool {
    wide == narrow || narrow.to_string().starts_with(&format!("{wide}:"))
}
