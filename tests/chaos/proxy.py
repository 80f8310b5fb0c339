"""A TCP proxy that a test delays, cuts, blocks and corrupts: the network between a fleet and its servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Any, Literal

#: `up`: from the client to the server; `down`: back.
Direction = Literal["up", "down"]
_READ = 64 * 1024
#: close() with this resets the connection, as a dead router or a crashed peer does.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to a target, a `(host, port)` or the path of a Unix socket.

    Any thread may steer it. What is asked for befalls all connections, those of today and those to come.
    """

    def __init__(self, target: tuple[str, int] | Path, path: Path | None = None) -> None:
        """Listens on a free TCP port of this machine and, with `path`, on a Unix socket."""
        self._target = target
        self._path = path
        # Holds the port while nobody listens on it, so that no other process gets it.
        self._held = _bound(0)
        self.port = int(self._held.getsockname()[1])
        self._delay = 0.0
        self._open = asyncio.Event()
        self._cuts: dict[Direction, int] = {}
        self._flips: dict[Direction, list[_Flip]] = {"up": [], "down": []}
        self._listeners: list[socket.socket] = []
        self._pairs: set[_Pair] = set()
        self._running: set[asyncio.Task[None]] = set()
        #: Bytes forwarded and connections made so far.
        self.forwarded: dict[Direction, int] = {"up": 0, "down": 0}
        self.connections = 0
        #: Bits that were flipped so far.
        self.flipped = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._open.set()
        self._call(self._listen())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def delay(self, seconds: float) -> None:
        """Hold everything back for so long, in both directions; 0 ends it."""
        self._delay = seconds

    def cut(self, after: int = 0, direction: Direction = "up") -> None:
        """Reset all connections, now or when `after` further bytes have gone in a direction."""
        if after:
            self._cuts[direction] = after
        else:
            self._call(self._reset_all())

    def refuse(self, on: bool) -> None:
        """Refuse new connections, as a port does on which nobody listens."""
        self._call(self._close() if on else self._listen())

    def blackhole(self, on: bool) -> None:
        """Accept connections and forward nothing; what was held back goes on its way afterwards."""
        self._loop.call_soon_threadsafe(self._open.clear if on else self._open.set)

    def strand(self) -> None:
        """Let the connections of today carry nothing any more and tell neither side, as a router that forgot
        them does; new ones work."""
        for pair in list(self._pairs):
            pair.is_stranded = True

    def corrupt(self, n: int = 1, direction: Direction = "up", after: bytes = b"", bit: int = 0) -> None:
        """Flip a bit of the n-th byte to come in a direction, counted from the next `after` there, once.

        `after` is looked for in what one connection carries, across its packets.
        """
        self._flips[direction].append(_Flip(n, after, 1 << bit))

    def heal(self) -> None:
        """Forget every fault; new connections are taken."""
        self._delay = 0.0
        self._cuts.clear()
        for flips in self._flips.values():
            flips.clear()
        self.blackhole(False)
        self.refuse(False)

    def stop(self) -> None:
        """Reset all connections and listen no more."""
        self._call(self._close())
        self._call(self._reset_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._held.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._listeners:
            return
        sockets = [_bound(self.port)]
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind(str(self._path))
        for made in sockets:
            made.listen()
            made.setblocking(False)
            self._loop.add_reader(made, self._accept, made)
        self._listeners = sockets

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            task = self._loop.create_task(self._forward(listening.accept()[0]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _close(self) -> None:
        for listening in self._listeners:
            self._loop.remove_reader(listening)
            listening.close()
        self._listeners.clear()

    async def _reset_all(self) -> None:
        for pair in list(self._pairs):
            pair.reset()
        if self._running:
            await asyncio.wait(set(self._running), timeout=5)

    async def _forward(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        pair = _Pair([writer])
        self._pairs.add(pair)
        self.connections += 1
        try:
            await self._open.wait()
            if isinstance(self._target, Path):
                inner, outer = await asyncio.open_unix_connection(str(self._target))
            else:
                inner, outer = await asyncio.open_connection(*self._target)
            pair.writers.append(outer)
            if not pair.is_reset:
                await asyncio.gather(
                    self._pump(pair, reader, outer, "up"), self._pump(pair, inner, writer, "down")
                )
        except OSError:
            pass
        finally:
            pair.reset()
            self._pairs.discard(pair)

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        before = b""
        while data := await reader.read(_READ):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._open.wait()
            if pair.is_stranded:
                continue
            left = self._cuts.get(direction)
            ends = left is not None and len(data) >= left
            data = data[:left] if ends else data
            if left is not None and not ends:
                self._cuts[direction] = left - len(data)
            damaged = self._damaged(before, data, direction)
            # Long enough for any mark that is looked for across two reads.
            before = (before + data)[-64:]
            self.forwarded[direction] += len(data)
            writer.write(damaged)
            # What was sent before a cut has arrived in life, too.
            await writer.drain()
            if ends:
                self._cuts.pop(direction, None)
                for pair in list(self._pairs):
                    pair.reset(after_flush=writer)
                return
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _damaged(self, before: bytes, data: bytes, direction: Direction) -> bytes:
        damaged = bytearray(data)
        for flip in list(self._flips[direction]):
            at = flip.find(before, data)
            if at is not None:
                damaged[at] ^= flip.mask
                self._flips[direction].remove(flip)
                self.flipped += 1
        return bytes(damaged)


class _Flip:
    """A bit to flip: the n-th byte behind a mark."""

    def __init__(self, n: int, after: bytes, mask: int) -> None:
        self._left = n
        self._after = after
        self.mask = mask

    def find(self, before: bytes, data: bytes) -> int | None:
        """Where in `data` the byte is, if it is there; else counts on."""
        start = 0
        if self._after:
            kept = before[-(len(self._after) - 1) :] if len(self._after) > 1 else b""
            found = (kept + data).find(self._after)
            if found < 0:
                return None
            start = found + len(self._after) - len(kept)
            # A mark at the very end: its byte comes with the next read, on this or another connection.
            self._after = b""
        at = start + self._left - 1
        if at < len(data):
            return at
        self._left -= len(data) - start
        return None


class _Pair:
    """The two sides of one connection."""

    def __init__(self, writers: list[asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.is_reset = self.is_stranded = False

    def reset(self, after_flush: asyncio.StreamWriter | None = None) -> None:
        """Reset both sides; of the one that has just been written to, what it has goes out first."""
        self.is_reset = True
        for writer in self.writers:
            if writer is after_flush:
                writer.close()
                continue
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made
