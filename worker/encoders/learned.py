"""What a machine's processes learned about its devices, kept in the data directory."""

from __future__ import annotations

import fcntl
import json
import logging
from pathlib import Path

from registry.files import write_whole
from registry.models import ModelSpec
from registry.settings import Settings

logger = logging.getLogger(__name__)

#: So many turns two ways of working take before one is called faster …
TURNS = 5
#: … and by so much their median must differ: ways that do as well are many, and a machine has other work.
GAIN = 1.03


def subject(spec: ModelSpec, settings: Settings, *, dtype: str, how: str, hardware: str) -> str:
    """What numbers are about: a model in a format, computed by something in some way, on a device."""
    model = "/".join(filter(None, [spec.name, spec.variant, "made-up" if settings.made_up else ""]))
    return f"{model} {dtype} {how} on {hardware}"


class Learned:
    """A file of numbers by what they are about, `{name: number}`, of which none is below 0.

    Shared by a machine's processes, and no more than a help: without it each finds out again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, name: str) -> int:
        """What was remembered; 0 for nothing."""
        return self._read().get(name, 0)

    def note(self, name: str, number: int) -> None:
        """Remember a number instead of what was remembered."""
        self._write(name, number, least=False)

    def note_least(self, name: str, number: int) -> None:
        """Remember a number, unless a smaller one is remembered already."""
        self._write(name, number, least=True)

    def _write(self, name: str, number: int, *, least: bool) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self._read()
                found[name] = min(number, found.get(name, number)) if least else number
                write_whole(self.path, json.dumps(found, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            logger.warning("%s is not remembered: %s cannot be written: %s", name, self.path, error)

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self.path.read_text())
            if not isinstance(found, dict) or not all(type(n) is int and n >= 0 for n in found.values()):
                raise ValueError("it is no table of numbers")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s says nothing, as it cannot be read: %s", self.path, error)
            return {}
        return found
