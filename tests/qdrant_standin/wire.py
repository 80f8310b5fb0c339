"""The public end of a server: connections that can be reset, as those of a server's library cannot."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path

_CHUNK = 1 << 18
#: Close with a reset: what was written and not yet sent is lost, as in a crash.
_RESET = struct.pack("ii", 1, 0)


class Wire:
    """Passes bytes between a port of the loopback and the Unix socket `inner`."""

    def __init__(self, port: int) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="qd-"))
        self.inner = self._directory / "socket"
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._standing: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection that stands."""
        with self._lock:
            standing, self._standing = self._standing, set()
            for one in standing:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    # Ends the threads that read it; they close it.
                    one.shutdown(socket.SHUT_RD)

    def stop(self) -> None:
        """Take no more connections, and reset those that stand."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(outer,), daemon=True).start()

    def _serve(self, outer: socket.socket) -> None:
        with outer, socket.socket(socket.AF_UNIX) as inner:
            try:
                inner.connect(str(self.inner))
            except OSError:
                return
            with self._lock:
                self._standing |= {outer, inner}
            back = threading.Thread(target=self._pass, args=(inner, outer), daemon=True)
            back.start()
            self._pass(outer, inner)
            back.join()
            with self._lock:
                self._standing -= {outer, inner}

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(_CHUNK):
                sink.sendall(some)
        # A connection that was cut says no goodbye, which its client would see before the reset.
        if source in self._standing:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
