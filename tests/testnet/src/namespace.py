"""A network namespace with a way to some ports of this host and a wire on which everything else is seen.

Started by namespace.rs, which sends one command a line and reads one line of answer. It ends with its input.
"""

import asyncio
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys

NEW_NET = 0x40000000  # CLONE_NEWNET
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33
BUFFER = 64 << 20
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)


HOST = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
checked(LIBC.unshare(NEW_NET))
INSIDE = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
ip("link set lo up")
# Where a packet goes that is for none of the ports: a cable whose other end nothing reads. The neighbours are made up, so
# that it is sent and not only looked for.
ip("link add wire type veth peer name end")
ip("link set end up")
ip("link set wire up")
ip("address add 192.0.2.2/24 dev wire")
ip("neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev wire nud permanent")
ip("route add default via 192.0.2.1")
ip("-6 address add 2001:db8::2/64 dev wire nodad")
ip("-6 neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev wire nud permanent")
ip("-6 route add default via 2001:db8::1 dev wire")
# The namespace has a name in /proc while this process runs: until our end of its input closes.
HOLDER = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
TAP = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
TAP.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
TAP.setblocking(False)
checked(LIBC.setns(HOST, NEW_NET))

FLOWS = {}


def ports(protocol, rest):
    return struct.unpack("!HH", rest[:4]) if protocol in (6, 17) and len(rest) >= 4 else (0, 0)


def flow(packet):
    """Protocol, sender and receiver of an Ethernet frame."""
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


async def carry(source, sink):
    try:
        while chunk := await source.read(65536):
            sink.write(chunk)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


async def forward(port):
    async def serve(near_in, near_out):
        try:
            far_in, far_out = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            near_out.close()
            return
        await asyncio.gather(carry(near_in, far_out), carry(far_in, near_out))

    checked(LIBC.setns(INSIDE, NEW_NET))
    try:
        listener = socket.create_server(("127.0.0.1", port))
    finally:
        checked(LIBC.setns(HOST, NEW_NET))
    await asyncio.start_server(serve, sock=listener)


def probe(address, port):
    """Sends one datagram, as a question to a resolver is sent."""
    checked(LIBC.setns(INSIDE, NEW_NET))
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"?", (address, port))
    finally:
        checked(LIBC.setns(HOST, NEW_NET))


def flows():
    capture()
    _, dropped = struct.unpack("II", TAP.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    names = ("device", "protocol", "source", "source_port", "target", "target_port")
    seen = [dict(zip(names, flow), packets=count) for flow, count in FLOWS.items()]
    return json.dumps({"flows": seen, "dropped": dropped})


async def main():
    loop = asyncio.get_running_loop()
    loop.add_reader(TAP, capture)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(HOLDER.pid, flush=True)
    while line := (await commands.readline()).decode().split():
        answer = "ok"
        if line[0] == "forward":
            await forward(int(line[1]))
        elif line[0] == "probe":
            probe(line[1], int(line[2]))
        elif line[0] == "flows":
            answer = flows()
        print(answer, flush=True)
    HOLDER.stdin.close()


asyncio.run(main())
