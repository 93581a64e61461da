//! Links, addresses and routes over rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};

use super::{NetError, Settings};
use crate::error::explain;

/// A usable address of the box.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The link it is on.
    pub interface: String,
}

impl Address {
    /// Whether it needs the link's name (zone) beside it.
    pub fn is_link_local(&self) -> bool {
        matches!(self.ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }
}

struct Link {
    index: u32,
    name: String,
    up: bool,
}

/// Brings up loopback and every physical link, sets the static addresses, and lists what is usable at once.
pub async fn bring_up(settings: &Settings) -> Result<Vec<Address>, NetError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Open)?;
    let driver = tokio::spawn(connection);
    let result = configure(&handle, settings).await;
    driver.abort();
    result
}

async fn configure(handle: &Handle, settings: &Settings) -> Result<Vec<Address>, NetError> {
    let links = links(handle).await?;
    for link in links.iter().filter(|link| is_ours(link)) {
        // One that its driver refuses to bring up, for want of firmware say, must not keep the others down.
        if let Err(error) = raise(handle, link).await {
            tracing::warn!("{}", explain(&error));
        }
    }
    set_static(handle, settings, &links).await?;
    list(handle).await
}

/// Loopback, and what has a device behind it: bridges and the like belong to whoever made them.
fn is_ours(link: &Link) -> bool {
    link.name == "lo" || is_physical(link)
}

fn is_physical(link: &Link) -> bool {
    Path::new("/sys/class/net").join(&link.name).join("device").exists()
}

async fn raise(handle: &Handle, link: &Link) -> Result<(), NetError> {
    if link.up {
        return Ok(());
    }
    if link.name != "lo" {
        // Before the link is up, or the first advertisement is lost. 2: also where forwarding is on.
        for (file, value) in [("accept_ra", "2"), ("autoconf", "1")] {
            let path = Path::new("/proc/sys/net/ipv6/conf").join(&link.name).join(file);
            #[expect(clippy::disallowed_methods, reason = "a kernel setting, not a file that must last")]
            if let Err(error) = std::fs::write(&path, value) {
                // A kernel without IPv6 has no such file, and may still have IPv4.
                tracing::warn!(path = %path.display(), %error, "the link will not configure itself");
            }
        }
    }
    let up = LinkUnspec::new_with_index(link.index).up().build();
    handle.link().set(up).execute().await.map_err(request(|| format!("bringing {} up", link.name)))
}

fn request(what: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> NetError {
    move |cause| NetError::Request { what: what(), cause }
}

async fn set_static(handle: &Handle, settings: &Settings, links: &[Link]) -> Result<(), NetError> {
    if let Some(&gateway) = settings
        .gateways
        .iter()
        .find(|gateway| !settings.addresses.iter().any(|(address, _)| address.is_ipv6() == gateway.is_ipv6()))
    {
        return Err(NetError::LoneGateway { gateway });
    }
    if settings.addresses.is_empty() {
        return Ok(());
    }
    let wanted = |link: &&Link| match &settings.interface {
        Some(name) => link.name == *name,
        None => is_physical(link),
    };
    let link = links.iter().find(wanted).ok_or_else(|| NetError::NoLink {
        wanted: settings.interface.clone().unwrap_or_else(|| "any physical link".into()),
    })?;
    for &(address, prefix) in &settings.addresses {
        // Replace: serve may have been restarted on a box that has them already.
        let add = handle.address().add(link.index, address, prefix).replace();
        add.execute().await.map_err(request(|| format!("adding {address}/{prefix} to {}", link.name)))?;
    }
    for &gateway in &settings.gateways {
        let route = match gateway {
            IpAddr::V6(gateway) => {
                RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(link.index).build()
            }
            IpAddr::V4(gateway) => {
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(link.index).build()
            }
        };
        let add = handle.route().add(route).replace();
        add.execute().await.map_err(request(|| format!("setting the gateway {gateway}")))?;
    }
    Ok(())
}

async fn links(handle: &Handle) -> Result<Vec<Link>, NetError> {
    let messages: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(request(|| "listing links".into()))?;
    Ok(messages.iter().filter_map(read_link).collect())
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(Link { index: message.header.index, name, up: message.header.flags.contains(LinkFlags::Up) })
}

/// The addresses others can reach the box at: not loopback, and not (yet) refused by duplicate address detection.
pub async fn addresses() -> Result<Vec<Address>, NetError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Open)?;
    let driver = tokio::spawn(connection);
    let result = list(&handle).await;
    driver.abort();
    result
}

async fn list(handle: &Handle) -> Result<Vec<Address>, NetError> {
    let links = links(handle).await?;
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(request(|| "listing addresses".into()))?;
    let mut found: Vec<Address> = messages
        .iter()
        .filter_map(|message| {
            let ip = usable(message)?;
            let link = links.iter().find(|link| link.index == message.header.index)?;
            Some(Address { ip, interface: link.name.clone() })
        })
        .collect();
    // What a person types first comes first.
    found.sort_by_key(|address| (address.is_link_local(), address.ip.is_ipv4(), address.clone()));
    found.dedup();
    Ok(found)
}

fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = local.or(address)?;
    let refused = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    (!refused && !ip.is_loopback() && !ip.is_multicast()).then_some(ip)
}

/// Tells of changes of links and addresses.
pub struct Watch {
    messages: futures_util::stream::BoxStream<'static, ()>,
    left: Settings,
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

/// Begins to watch. Do so before the first [`addresses`], so that no change falls in between. `left` is set as soon as
/// its link appears.
pub fn watch(left: Settings) -> Result<Watch, NetError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv4Ifaddr];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(NetError::Open)?;
    let driver = tokio::spawn(connection);
    Ok(Watch { messages: messages.map(|_| ()).boxed(), left, handle, driver })
}

impl Watch {
    /// Waits for a change, brings up links that have appeared, and lists the addresses there are then.
    /// `None` when the kernel's messages have ended.
    pub async fn changed(&mut self) -> Option<Result<Vec<Address>, NetError>> {
        self.messages.next().await?;
        Some(self.now().await)
    }

    /// The same at once: for what has changed before the watch began.
    ///
    /// # Errors
    /// [`NetError`] when the kernel does not tell its addresses.
    pub async fn now(&mut self) -> Result<Vec<Address>, NetError> {
        match configure(&self.handle, &self.left).await {
            // Told once, when the network came up.
            Err(NetError::NoLink { .. }) => {}
            // Set or refused: not tried again, since every try is itself a change.
            other => {
                self.left = Settings::default();
                if let Err(error) = &other {
                    tracing::error!("{}", explain(error));
                } else {
                    return other;
                }
            }
        }
        list(&self.handle).await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
