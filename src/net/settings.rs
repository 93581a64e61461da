//! The network settings of the appliance, from the kernel command line.
//!
//! `carena.address=fd00:ca::5/64 carena.gateway=fd00:ca::1 carena.interface=eth0`: all optional; without an address the
//! links configure themselves (link-local, router advertisements). `carena.console_from=fd00::/8,10.0.0.0/8` is read apart: an
//! error elsewhere must not open to all what the operator has closed. A word that cannot be read is an error that
//! names it, never silently another network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::NetError;
use super::firewall::rules::Prefix;

/// What the operator asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Static addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default routes, at most one a family.
    pub gateways: Vec<IpAddr>,
    /// Where static addresses go; the first physical link when not given.
    pub interface: Option<String>,
}

impl Settings {
    /// Reads the running kernel's command line.
    pub fn from_kernel() -> Result<Self, NetError> {
        Self::parse(&command_line()?)
    }

    /// Reads the `carena.` words of a command line that are about the network.
    pub fn parse(command_line: &str) -> Result<Self, NetError> {
        let mut settings = Self::default();
        for word in command_line.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let refused = |why: &'static str| NetError::Setting { word: word.to_owned(), why };
            match key {
                "carena.address" => settings.addresses.push(parse_address(value).map_err(refused)?),
                "carena.gateway" => {
                    let gateway: IpAddr = value.parse().map_err(|_| refused("it is no IP address"))?;
                    if settings.gateways.iter().any(|known| known.is_ipv6() == gateway.is_ipv6()) {
                        return Err(refused("there is a gateway of this family already"));
                    }
                    settings.gateways.push(gateway);
                }
                "carena.interface" if is_interface_name(value) => settings.interface = Some(value.to_owned()),
                "carena.interface" => {
                    return Err(refused("an interface has 1 to 15 letters, digits, '.', '-', '_'"));
                }
                _ => {}
            }
        }
        Ok(settings)
    }
}

/// Where the console may be opened from, as the running kernel's command line says: none for everywhere.
///
/// # Errors
/// [`NetError`], when it is said and cannot be read.
pub fn console_from() -> Result<Option<Vec<Prefix>>, NetError> {
    parse_console_from(&command_line()?)
}

fn parse_console_from(command_line: &str) -> Result<Option<Vec<Prefix>>, NetError> {
    let mut from = None::<Vec<Prefix>>;
    for word in command_line.split_whitespace() {
        let Some(value) = word.strip_prefix("carena.console_from=") else { continue };
        for prefix in value.split(',') {
            let refused = |why| NetError::Setting { word: word.to_owned(), why };
            from.get_or_insert_default().push(parse_prefix(prefix).map_err(refused)?);
        }
    }
    Ok(from)
}

fn parse_prefix(value: &str) -> Result<Prefix, &'static str> {
    let wrong = "it is no prefix, as fd00::/8 or 10.0.0.0/8";
    let (address, length) = value.split_once('/').ok_or(wrong)?;
    let (address, length): (IpAddr, u8) =
        (address.parse().map_err(|_| wrong)?, length.parse().map_err(|_| wrong)?);
    match address {
        IpAddr::V6(mapped) if mapped.to_ipv4_mapped().is_some() => Err("write it as an IPv4 prefix"),
        IpAddr::V6(_) if u32::from(length) <= Ipv6Addr::BITS => Ok((address, length)),
        IpAddr::V4(_) if u32::from(length) <= Ipv4Addr::BITS => Ok((address, length)),
        _ => Err(wrong),
    }
}

fn command_line() -> Result<String, NetError> {
    let path = "/proc/cmdline";
    std::fs::read_to_string(path).map_err(|cause| NetError::File { path: path.into(), cause })
}

fn parse_address(value: &str) -> Result<(IpAddr, u8), &'static str> {
    let (address, prefix) =
        value.split_once('/').ok_or("the prefix length is missing, as in fd00:ca::5/64")?;
    let address: IpAddr = address.parse().map_err(|_| "it is no IP address")?;
    let longest = if address.is_ipv6() { Ipv6Addr::BITS } else { Ipv4Addr::BITS };
    match prefix.parse::<u8>() {
        Ok(prefix) if prefix > 0 && u32::from(prefix) <= longest => Ok((address, prefix)),
        _ => Err("the prefix length is not between 1 and 128 (1 and 32 for IPv4)"),
    }
}

/// IFNAMSIZ is 16 with its end; the name becomes a part of a path under /proc/sys.
fn is_interface_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=15).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_command_line_is_read() {
        let line = "quiet carena.address=fd00:ca::5/64 carena.address=192.0.2.5/24 carena.gateway=fd00:ca::1 carena.interface=eth1";
        let settings = Settings::parse(line).unwrap();
        assert_eq!(
            settings.addresses,
            [("fd00:ca::5".parse().unwrap(), 64), ("192.0.2.5".parse().unwrap(), 24)]
        );
        assert_eq!(settings.gateways, ["fd00:ca::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(settings.interface.as_deref(), Some("eth1"));
    }

    #[test]
    fn who_may_open_the_console_is_read_whatever_else_is_wrong() {
        let read = |text: &str| parse_console_from(text);
        let prefix = |address: &str, length| (address.parse().unwrap(), length);
        let line = "carena.address=wrong carena.console_from=fd00::/8,10.0.0.0/8 carena.console_from=::/0";
        let all = vec![prefix("fd00::", 8), prefix("10.0.0.0", 8), prefix("::", 0)];
        assert_eq!(read(line).unwrap(), Some(all));
        assert_eq!(read("quiet").unwrap(), None);
        for value in ["", "fd00::/8,", "fd00::", "10.0.0.0/33", "::ffff:10.0.0.0/104", "host/64"] {
            let word = format!("carena.console_from={value}");
            assert!(read(&word).unwrap_err().to_string().contains(&word));
        }
    }

    #[test]
    fn no_settings_is_no_error() {
        assert_eq!(Settings::parse("console=ttyS0 quiet").unwrap(), Settings::default());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for word in [
            "carena.address=fd00::5",
            "carena.address=fd00::5/129",
            "carena.address=192.0.2.1/33",
            "carena.address=fd00::5/0",
            "carena.address=x/64",
            "carena.gateway=router",
            "carena.interface=../eth0",
            "carena.interface=..",
            "carena.interface=",
        ] {
            let error = Settings::parse(word).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(Settings::parse("carena.gateway=fd00::1 carena.gateway=fd00::2").is_err());
    }
}
