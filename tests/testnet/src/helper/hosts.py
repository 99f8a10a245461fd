"""Hosts in network namespaces of their own, and the router between them.

The router is this process: each host's interface is a TUN device whose other end it holds.
"""

import collections
import fcntl
import ipaddress
import random

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LONGEST_PACKET = 65536
UDP = 17
# Packets that are read from a host before another's turn.
AT_ONCE = 64
# Seconds without a packet after which a NAT forgets: less than many routers wait.
NAT_MEMORY = 20
# Seconds between the bursts of a flood.
FLOOD_PAUSE = 0.01


class Host:
    def __init__(self, name):
        self.name = name
        self.namespace, self.holder = new_namespace()
        self.addresses = set()
        self.nat = None
        with inside(self.namespace):
            self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
            ip("link set wire up")

    def set_addresses(self, addresses):
        """Replace the addresses. Everything is routed to the router, from the first of each family."""
        with inside(self.namespace):
            ip("address flush dev wire")
            for address in addresses:
                is_v6 = ":" in address
                family, length = ("-6", "128 nodad") if is_v6 else ("-4", "32")
                ip(f"{family} address add {address}/{length} dev wire")
                ip(f"{family} route replace default dev wire src {address}")
        self.addresses = {ipaddress.ip_address(address).packed for address in addresses}


class Nat:
    """A NAT that gives each connection a port of its own, as the routers of most homes do.

    It lets in only what answers, and nothing but UDP over IPv4 passes.
    """

    def __init__(self, address):
        self.address = ipaddress.ip_address(address).packed
        self.forget()

    def forget(self):
        self.ports = {}
        self.connections = {}

    def drop_old(self, now):
        old = [port for port, (_, used) in self.connections.items() if now - used > NAT_MEMORY]
        for port in old:
            del self.ports[self.connections.pop(port)[0]]

    def outgoing(self, packet, now):
        """Return the packet as the outside sees it."""
        self.drop_old(now)
        connection = (packet[12:16], source_port(packet), packet[16:20], target_port(packet))
        port = self.ports.get(connection)
        if port is None:
            port = random.randint(1024, 65535)
            while port in self.connections:
                port = random.randint(1024, 65535)
            self.ports[connection] = port
        self.connections[port] = (connection, now)
        return readdressed(packet, 12, self.address, 0, port)

    def incoming(self, packet, now):
        """Return the packet as the inside sees it, or None if it answers nothing."""
        self.drop_old(now)
        connection, _ = self.connections.get(target_port(packet), (None, None))
        if connection is None or connection[2:] != (packet[12:16], source_port(packet)):
            return None
        self.connections[target_port(packet)] = (connection, now)
        return readdressed(packet, 16, connection[0], 2, connection[1])


def header(packet):
    return (packet[0] & 15) * 4


def source_port(packet):
    return struct.unpack_from("!H", packet, header(packet))[0]


def target_port(packet):
    return struct.unpack_from("!H", packet, header(packet) + 2)[0]


def readdressed(packet, at, address, port_at, port):
    """Return a UDP packet over IPv4 with another address and port. Its UDP checksum is left out."""
    changed, start = bytearray(packet), header(packet)
    changed[at : at + 4] = address
    struct.pack_into("!H", changed, start + port_at, port)
    struct.pack_into("!H", changed, start + 6, 0)
    struct.pack_into("!H", changed, 10, 0)
    total = sum(struct.unpack_from(f"!{start // 2}H", changed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", changed, 10, total ^ 0xFFFF)
    return bytes(changed)


HOSTS = {name: Host(name) for name in sys.argv[1:]}
# How long a packet takes, in seconds; the longest that passes; and whether none does.
PATH = {"delay": 0.0, "longest": LONGEST_PACKET, "blocked": False}
COUNTS = collections.Counter()


def route(host, packet):
    """Pass a packet from a host on, or lose it, and count it in either case."""
    clock = asyncio.get_running_loop().time
    is_v6 = packet[0] >> 4 == 6
    if is_v6 and packet[6] == 58 or packet[24 if is_v6 else 16] in (0xFF, 0xE0):
        return  # ICMPv6 and multicast, by which the kernel looks for neighbours
    if PATH["blocked"]:
        return count("blocked", packet)
    if len(packet) > PATH["longest"]:
        return count("too_long", packet)
    if host.nat:
        if is_v6 or packet[9] != UDP:
            return count("refused_by_nat", packet)
        packet = host.nat.outgoing(packet, clock())
    to = packet[24:40] if is_v6 else packet[16:20]
    for target in HOSTS.values():
        if target.nat and target.nat.address == to:
            packet = target.nat.incoming(packet, clock())
            if packet is None:
                return count("refused_by_nat", b"")
            break
        if not target.nat and to in target.addresses:
            break
    else:
        return count("unroutable", packet)
    count("passed_v6" if is_v6 else "passed_v4", packet)
    if PATH["delay"]:
        asyncio.get_running_loop().call_later(PATH["delay"], deliver, target, packet)
    else:
        deliver(target, packet)


def count(what, packet):
    COUNTS[what] += 1
    if what.startswith("passed"):
        COUNTS["longest"] = max(COUNTS["longest"], len(packet))


def deliver(target, packet):
    # A full queue loses packets, as that of any router does.
    with contextlib.suppress(OSError):
        os.write(target.tun, packet)


def receive(host):
    for _ in range(AT_ONCE):
        try:
            packet = os.read(host.tun, LONGEST_PACKET)
        except OSError:
            return
        route(host, packet)


async def flood(host, address, port, number):
    """Send datagrams of random bytes from a host, a thousand a second."""
    with inside(host.namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for at in range(number):
        # Many begin as a message of WireGuard does.
        datagram = bytes([at % 6, 0, 0, 0]) + os.urandom(at * 7 % 1200)
        with contextlib.suppress(OSError):
            sender.sendto(datagram, (address, port))
        if at % 10 == 9:
            await asyncio.sleep(FLOOD_PAUSE)
    sender.close()


async def act(command, *words):
    host = HOSTS.get(words[0]) if words else None
    if command == "forward":
        await forward(host.namespace, int(words[1]))
    elif command == "forward_far":
        await forward(host.namespace, int(words[1]), lambda: PATH["delay"])
    elif command == "addresses":
        host.set_addresses(words[1:])
    elif command == "nat":
        host.nat = Nat(words[1]) if words[1:] else None
    elif command == "forget":
        host.nat.forget()
    elif command == "path":
        PATH.update(json.loads(words[0]))
    elif command == "flood":
        await flood(host, words[1], int(words[2]), int(words[3]))
    elif command == "counts":
        return json.dumps(COUNTS)


async def main():
    for host in HOSTS.values():
        asyncio.get_running_loop().add_reader(host.tun, receive, host)
    await obey([host.holder for host in HOSTS.values()], act)


asyncio.run(main())
