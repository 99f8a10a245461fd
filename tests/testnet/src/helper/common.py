"""Network namespaces, ports that are forwarded into them, and the commands of a helper.

namespace.rs and hosts.rs start a helper each: this text, followed by that of its own. They send one
command per line and read one line of answer to each. A helper ends when its input ends.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys

NEW_NET = 0x40000000  # CLONE_NEWNET
LIBC = ctypes.CDLL(None, use_errno=True)
# Chunks that wait on a delayed stream in one direction; then its reader waits.
MOST_LATE = 256


def checked(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)


HOST = os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextlib.contextmanager
def inside(namespace):
    checked(LIBC.setns(namespace, NEW_NET))
    try:
        yield
    finally:
        checked(LIBC.setns(HOST, NEW_NET))


def new_namespace():
    """Create a namespace. Return it, and a process that gives it a name in /proc.

    The process runs until our end of its input closes.
    """
    checked(LIBC.unshare(NEW_NET))
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ip("link set lo up")
    holder = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    checked(LIBC.setns(HOST, NEW_NET))
    return namespace, holder


async def carry(source, sink, delay):
    """Move the bytes of a stream one way, each of them `delay` seconds late."""
    clock = asyncio.get_running_loop().time
    late = asyncio.Queue(MOST_LATE)

    async def read():
        chunk = b"?"
        while chunk:
            chunk = await source.read(65536)
            await late.put((clock() + delay, chunk))

    async def write():
        while (entry := await late.get())[1]:
            await asyncio.sleep(entry[0] - clock())
            sink.write(entry[1])
            await sink.drain()
        await asyncio.sleep(entry[0] - clock())

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())
    except* OSError:
        pass
    finally:
        sink.close()


async def forward(namespace, port, delay=lambda: 0):
    """Forward a port of 127.0.0.1 in the namespace to the same port of the host's 127.0.0.1.

    `delay` tells how many seconds a packet takes each way when a connection is opened.
    """

    async def serve(near_in, near_out):
        one_way = delay()
        # What the client sends first follows TCP's handshake, which is a round trip.
        await asyncio.sleep(2 * one_way)
        try:
            far_in, far_out = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            near_out.close()
            return
        await asyncio.gather(carry(near_in, far_out, one_way), carry(far_in, near_out, one_way))

    with inside(namespace):
        listener = socket.create_server(("127.0.0.1", port))
    await asyncio.start_server(serve, sock=listener)


async def obey(holders, act):
    """Print the pids of the namespaces' holders, then answer each command as `act` does."""
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(*(holder.pid for holder in holders), flush=True)
    while line := (await commands.readline()).decode().split():
        print(await act(*line) or "ok", flush=True)
    for holder in holders:
        holder.stdin.close()
