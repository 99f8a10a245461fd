"""A network namespace whose packets are captured."""

PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE, SO_ATTACH_FILTER = 263, 6, 33, 26
BUFFER = 64 << 20
# The packets that the kernel hands to the capture, as a classic BPF program (code, jump if true,
# jump if false, operand). Of TCP from 127.0.0.1 to itself it takes only packets with SYN, which
# show every connection without the load of its content; of all else every packet that is sent. It
# takes the first 128 bytes of each.
FILTER = [
    (0x20, 0, 0, 0xFFFFF004),  # the packet's type (SKF_AD_PKTTYPE)
    (0x15, 0, 12, PACKET_OUTGOING),
    (0x28, 0, 0, 12),  # the protocol in the frame
    (0x15, 0, 9, 0x0800),  # IPv4
    (0x30, 0, 0, 23),  # the protocol in the packet
    (0x15, 0, 7, 6),  # TCP
    (0x20, 0, 0, 26),  # the sender
    (0x15, 0, 5, 0x7F000001),
    (0x20, 0, 0, 30),  # the receiver
    (0x15, 0, 3, 0x7F000001),
    (0xB1, 0, 0, 14),  # the length of the IPv4 header
    (0x50, 0, 0, 14 + 13),  # TCP's flags
    (0x45, 0, 1, 2),  # SYN
    (0x06, 0, 0, 128),
    (0x06, 0, 0, 0),
]

INSIDE, HOLDER = new_namespace()
with inside(INSIDE):
    # Packets to any other address are routed to a link whose far end nothing reads. The neighbour's
    # link address is made up, so that such a packet is sent instead of waiting for address
    # resolution.
    ip("link add wire type veth peer name end")
    ip("link set end up")
    ip("link set wire up")
    ip("address add 192.0.2.2/24 dev wire")
    ip("address add 192.0.2.3/24 dev wire")
    ip("neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev wire nud permanent")
    ip("route add default via 192.0.2.1")
    ip("-6 address add 2001:db8::2/64 dev wire nodad")
    ip("-6 neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev wire nud permanent")
    ip("-6 route add default via 2001:db8::1 dev wire")
    TAP = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
TAP.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
PROGRAM = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in FILTER))
TAP.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(FILTER), ctypes.addressof(PROGRAM)))
TAP.setblocking(False)

FLOWS = {}


def ports(protocol, rest):
    return struct.unpack("!HH", rest[:4]) if protocol in (6, 17) and len(rest) >= 4 else (0, 0)


def flow(packet):
    """Return the protocol, sender and receiver of an Ethernet frame."""
    kind, body = struct.unpack("!H", packet[12:14])[0], packet[14:]
    if kind == 0x0800:
        protocol, start = body[9], (body[0] & 15) * 4
        source, target = (socket.inet_ntop(socket.AF_INET, body[at : at + 4]) for at in (12, 16))
    elif kind == 0x86DD:
        protocol, start = body[6], 40
        if protocol == 0:  # hop-by-hop options, before the protocol itself
            protocol = body[40]
        source, target = (socket.inet_ntop(socket.AF_INET6, body[at : at + 16]) for at in (8, 24))
    else:
        return ("ethernet %04x" % kind, "", 0, "", 0)
    name = {6: "tcp", 17: "udp", 58: "icmpv6"}.get(protocol, "ip %d" % protocol)
    source_port, target_port = ports(protocol, body[start:])
    return (name, source, source_port, target, target_port)


def capture():
    while True:
        try:
            packet, (device, _, direction, *_) = TAP.recvfrom(128)
        except BlockingIOError:
            return
        if direction == PACKET_OUTGOING and device in ("lo", "wire"):
            seen = (device, *flow(packet))
            FLOWS[seen] = FLOWS.get(seen, 0) + 1


def probe(address, port):
    """Send one datagram, as a resolver's client would."""
    with inside(INSIDE):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"?", (address, port))


def flows():
    capture()
    _, dropped = struct.unpack("II", TAP.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    names = ("device", "protocol", "source", "source_port", "target", "target_port")
    seen = [dict(zip(names, flow), packets=count) for flow, count in FLOWS.items()]
    return json.dumps({"flows": seen, "dropped": dropped})


async def act(command, *words):
    if command == "forward":
        await forward(INSIDE, int(words[0]))
    elif command == "probe":
        probe(words[0], int(words[1]))
    elif command == "flows":
        return flows()


async def main():
    asyncio.get_running_loop().add_reader(TAP, capture)
    await obey([HOLDER], act)


asyncio.run(main())
