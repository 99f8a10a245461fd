//! The requests to the kernel that the crate does not have: find, name and remove an interface,
//! remove a route, and change the private key alone.

use std::fmt::Debug;
use std::io;
use std::net::Ipv6Addr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use netlink_sys::constants::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use zeroize::Zeroizing;

use super::claim::Link;
use crate::wireguard::WireguardSecret;

/// Linux's numbers of the errors that are answers: no such interface, route or device.
const NO_SUCH: [i32; 3] = [2, 3, 19];

/// The interface of this name.
pub(super) fn find(name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    let answers = match request(RouteNetlinkMessage::GetLink(message), NETLINK_ROUTE) {
        Err(error) if is_missing(&error) => return Ok(None),
        answers => answers?,
    };
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(found.map(read))
}

fn read(message: LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(info) => {
                link.is_wireguard |= info.contains(&LinkInfo::Kind(InfoKind::Wireguard));
            }
            _ => {}
        }
    }
    link
}

/// Attaches a text to an interface.
pub(super) fn set_alias(index: u32, alias: String) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfAlias(alias));
    request(RouteNetlinkMessage::SetLink(message), NETLINK_ROUTE).map(drop)
}

/// Removes an interface, with its addresses and routes. One that is gone is not an error.
pub(super) fn remove(index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    unless_missing(request(RouteNetlinkMessage::DelLink(message), NETLINK_ROUTE))
}

/// Removes the route to an address by this interface. One that is gone is not an error.
pub(super) fn remove_route(index: u32, address: Ipv6Addr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet6,
        destination_prefix_length: 128,
        table: RouteHeader::RT_TABLE_MAIN,
        scope: RouteScope::NoWhere,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(address)));
    unless_missing(request(RouteNetlinkMessage::DelRoute(message), NETLINK_ROUTE))
}

/// Changes the private key and nothing else: the peers, and what they send by their sessions, stay.
pub(super) fn set_private_key(name: &str, secret: &WireguardSecret) -> io::Result<()> {
    let attributes = vec![WireguardAttribute::IfName(name.into()), WireguardAttribute::PrivateKey(*secret.as_bytes())];
    let mut message = GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
    message.set_resolved_family_id(wireguard_family()?);
    request(message, NETLINK_GENERIC).map(drop)
}

/// The number by which the kernel knows its WireGuard.
fn wireguard_family() -> io::Result<u16> {
    let nlas = vec![GenlCtrlAttrs::FamilyName("wireguard".into())];
    let answers = request(GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas }), NETLINK_GENERIC)?;
    let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
    let mut numbers = attributes.filter_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(number),
        _ => None,
    });
    numbers.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| NO_SUCH.contains(&number))
}

fn unless_missing<T>(done: io::Result<T>) -> io::Result<()> {
    match done {
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Sends one request and collects the answers up to the acknowledgement.
fn request<T>(message: T, protocol: isize) -> io::Result<Vec<T>>
where
    T: Debug + NetlinkSerializable + NetlinkDeserializable,
    NetlinkPayload<T>: From<T>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    // May hold the private key.
    let mut bytes = Zeroizing::new(vec![0; message.buffer_len()]);
    message.serialize(&mut bytes);
    let socket = Socket::new(protocol)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(answer.header.length).map_err(io::Error::other)?.next_multiple_of(4);
            match answer.payload {
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::InnerMessage(message) => answers.push(message),
                _ => {}
            }
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}
