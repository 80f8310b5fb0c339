"""The ledger's Lua steps, loaded from `ledger/lua/`. Each checks first and says what it found."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from redis.commands.core import Script

from ledger.server import Redis, named_errors

_FOLDER = Path(__file__).parent / "lua"


@cache
def _source(name: str) -> str:
    """A script's text with the prelude put behind its flags line."""
    text = (_FOLDER / f"{name}.lua").read_text()
    prelude = (_FOLDER / "prelude.lua").read_text()
    if text.startswith("#!"):
        flags, body = text.split("\n", 1)
        return f"{flags}\n{prelude}{body}"
    return prelude + text


class Scripts:
    """Runs scripts by name on one server."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._loaded: dict[str, Script] = {}

    def run(self, name: str, *arguments: str | bytes | int | float) -> Any:
        """Run a script and decode its answer. Raises LedgerFull or LedgerUnavailable."""
        script = self._loaded.get(name)
        if script is None:
            script = self._loaded[name] = self._client.register_script(_source(name))
        with named_errors():
            return _decoded(script(args=list(arguments)))


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value
