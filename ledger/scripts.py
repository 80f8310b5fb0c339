"""The ledger's Lua steps, loaded from `ledger/lua/`. Each checks first and says what it found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from redis.commands.core import Script
from redis.exceptions import NoScriptError

from ledger.server import Redis, named_errors

Argument = str | bytes | int | float

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
        self.client = client
        self._loaded: dict[str, Script] = {}

    def run(self, name: str, *arguments: Argument) -> Any:
        """Run a script and decode its answer. Raises LedgerFull or LedgerUnavailable."""
        return decoded(self.run_raw(name, *arguments))

    def run_raw(self, name: str, *arguments: Argument) -> Any:
        """Run a script; its answer as it came, for what holds a blob. Raises as `run`."""
        with named_errors():
            return self._script(name)(args=list(arguments))

    def run_after(self, command: Sequence[Argument], name: str, *arguments: Argument) -> Any:
        """Run a command and then a script, in one round trip; the script's answer, decoded.

        The server runs the script even if it refused the command, so the script must see that for itself.
        Raises as `run`, the command's error first.
        """
        script = self._script(name)
        with named_errors():
            pipe = self.client.pipeline(transaction=False)
            pipe.execute_command(*command)
            pipe.evalsha(script.sha, 0, *arguments)
            refused, answer = pipe.execute(raise_on_error=False)
            if isinstance(refused, Exception):
                raise refused
            if isinstance(answer, NoScriptError):
                answer = script(args=list(arguments))
            if isinstance(answer, Exception):
                raise answer
            return decoded(answer)

    def _script(self, name: str) -> Script:
        script = self._loaded.get(name)
        if script is None:
            script = self._loaded[name] = self.client.register_script(_source(name))
        return script


def decoded(value: Any) -> Any:
    """A script's answer with text in place of bytes."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value
