"""The record kept beside an embedded collection's files: its binding, and which of its files count."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from registry.errors import PlanError, StoreRefused
from store.binding import Binding

_FILE = "collection.json"
_VERSION = 1

#: `creating`: the files may be half made, and nothing was ever written to them. `standing`: they are whole.
State = Literal["creating", "standing"]


@dataclass(frozen=True)
class Meta:
    """One collection's record. It is written before the files change and after they have changed."""

    state: State
    #: Number of the shard directory in use; any other is a leftover.
    shard: int
    #: How many points the shard had when it was last optimised.
    optimised: int
    #: Vectors of the binding that may not exist yet; nothing was ever written to them.
    adding: tuple[str, ...]
    binding: Binding
    #: Further facts, JSON values by key (see store.base.Store.note).
    notes: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Replace the record in a collection's directory, atomically, and on disk when this returns."""
        body = json.dumps(
            {
                "version": _VERSION,
                "state": self.state,
                "shard": self.shard,
                "optimised": self.optimised,
                "adding": self.adding,
                **self.binding.to_json(),
                "notes": self.notes,
            },
            indent=1,
        )
        fresh = directory / f"{_FILE}.new"
        with fresh.open("w") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(directory / _FILE)
        sync_path(directory)


def read_meta(directory: Path) -> Meta | None:
    """A collection's record; None if there is none. Raises StoreRefused if it cannot be understood."""
    path = directory / _FILE
    try:
        record = json.loads(path.read_text())
        if record["version"] != _VERSION:
            raise ValueError(f"version {record['version']}; this program reads {_VERSION}")
        return Meta(
            record["state"],
            int(record["shard"]),
            int(record["optimised"]),
            tuple(record["adding"]),
            Binding.from_json(record),
            dict(record.get("notes", {})),
        )
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise StoreRefused(
            f"{path} cannot be understood ({error}); restore it from a backup, or remove {directory} and "
            "index again"
        ) from None


def sync_path(path: Path) -> None:
    """Have a file's or directory's contents on disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
