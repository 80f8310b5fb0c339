"""The proxy itself: each fault does what it says, and heals."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.proxy import Proxy


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.server.seen.append(data)
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.seen: list[bytes] = []

    def handle_error(self, *_: Any) -> None:
        """A reset connection is what these tests are about."""


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", echo.server_address[1])) as made:
        yield made


def connect(proxy: Proxy, seconds: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds)


def ask(connection: socket.socket, data: bytes) -> bytes:
    """Send, and read as much back."""
    connection.sendall(data)
    return read(connection, len(data))


def read(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := connection.recv(count - len(found))):
        found += more
    return found


def ends(connection: socket.socket) -> bool:
    """Whether the other side closes or resets it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_it_forwards_over_tcp_and_unix_sockets(echo: EchoServer, data_dir: Path) -> None:
    path, second = data_dir / "p", data_dir / "q"
    port = echo.server_address[1]
    with Proxy(("127.0.0.1", port), path) as outer, Proxy(path, second) as inner:
        for made in (outer, inner):
            with connect(made) as connection:
                assert ask(connection, b"x" * 300_000) == b"x" * 300_000
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(second))
            assert ask(connection, b"hello") == b"hello"
    assert not path.exists()


def test_a_cut_resets_what_stands_and_nothing_else(proxy: Proxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        assert (ask(first, b"a"), ask(second, b"b")) == (b"a", b"b")
        proxy.cut()
        assert ends(first)
        assert ends(second)
    with connect(proxy) as third:
        assert ask(third, b"c") == b"c"


def test_a_cut_in_the_middle_of_a_message_lets_so_many_bytes_through(
    proxy: Proxy, echo: EchoServer, eventually: Callable[..., Any]
) -> None:
    with connect(proxy) as first:
        proxy.cut(after=5, direction="up")
        first.sendall(b"0123456789")
        eventually(lambda: b"".join(echo.seen) == b"01234")
        while not ends(first):
            pass
    with connect(proxy) as second:
        proxy.cut(after=3, direction="down")
        second.sendall(b"abcdef")
        assert read(second, 6) == b"abc"
        assert ends(second)
    with connect(proxy) as third:
        assert ask(third, b"0123456789") == b"0123456789"


def test_refused_connections_are_refused_and_standing_ones_stay(proxy: Proxy) -> None:
    with connect(proxy) as standing:
        assert ask(standing, b"here") == b"here"
        proxy.refuse(True)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(standing, b"still") == b"still"
    proxy.refuse(False)
    proxy.refuse(False)
    with connect(proxy) as fresh:
        assert ask(fresh, b"again") == b"again"


def test_a_black_hole_takes_connections_and_answers_nothing_until_it_ends(proxy: Proxy) -> None:
    with connect(proxy) as standing:
        assert ask(standing, b"a") == b"a"
        proxy.blackhole(True)
        with connect(proxy) as fresh:
            for connection in (standing, fresh):
                connection.settimeout(0.2)
                connection.sendall(b"lost?")
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(10)
            proxy.blackhole(False)
            assert read(standing, 5) == b"lost?"
            assert read(fresh, 5) == b"lost?"


def test_a_delay_holds_everything_back(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.delay(0.3)
        connection.settimeout(0.2)
        connection.sendall(b"late")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        assert read(connection, 4) == b"late"
        proxy.delay(0)
        assert ask(connection, b"soon") == b"soon"


@pytest.mark.parametrize("sent", [(b"say MARKabcdef",), (b"say MA", b"RKab", b"cdef")])
def test_one_bit_is_flipped_behind_a_mark_and_only_once(proxy: Proxy, sent: tuple[bytes, ...]) -> None:
    proxy.corrupt(3, "up", after=b"MARK")
    with connect(proxy) as connection:
        assert b"".join(ask(connection, part) for part in sent) == b"say MARKabbdef"
        assert ask(connection, b"MARKabcdef") == b"MARKabcdef"
        proxy.corrupt(2, "down", bit=1)
        assert ask(connection, b"abcdef") == b"a`cdef"
    assert proxy.flipped == 2


def test_healing_ends_every_fault(proxy: Proxy) -> None:
    proxy.delay(5)
    proxy.cut(after=3)
    proxy.corrupt(1)
    proxy.blackhole(True)
    proxy.refuse(True)
    proxy.heal()
    with connect(proxy) as connection:
        assert ask(connection, b"well") == b"well"
    assert proxy.flipped == 0


def test_stranded_connections_are_silent_and_new_ones_work(proxy: Proxy, echo: EchoServer) -> None:
    with connect(proxy, 0.2) as old:
        assert ask(old, b"before") == b"before"
        proxy.strand()
        old.sendall(b"after")
        with pytest.raises(TimeoutError):
            old.recv(1)
        with connect(proxy) as new:
            assert ask(new, b"new") == b"new"
    assert b"".join(echo.seen) == b"beforenew"
