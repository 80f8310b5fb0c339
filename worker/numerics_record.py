"""How the numbers of a collection's vectors came about, noted with the collection: one fact for each way.

Float formats and backends share a space, so a collection may hold vectors of several; the notes tell which.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from registry.codecs import Part
from registry.models import OutputKind
from registry.plan import Plan
from store.base import Store

#: Followed by the vector's name and a digest of the fact, so that aggregators never replace each other's.
NOTE = "numerics/"

Fact = dict[str, Any]


class NumericsRecords:
    """Notes what is new about the numerics of a collection's vectors; any thread may call it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def settle(self, collection: str, plan: Plan, names: Sequence[str], parts: Mapping[str, Part]) -> None:
        """Note how these parts were made, for each named vector that comes of them. Raises as Store.note."""
        facts = [
            (vector.name, fact_of(model, parts[model], vector.kind))
            for vector in plan.vectors()
            if vector.name in set(names)
            for model in vector.models
        ]
        wanted = {_key(name, fact): fact for name, fact in facts}
        with self._lock:
            if wanted.keys() <= self._noted.get(collection, set()):
                return
            standing = self._store.notes(collection)
            for key, fact in wanted.items():
                if key not in standing:
                    self._store.note(collection, key, fact)
            self._noted.setdefault(collection, set()).update(wanted)

    def forget(self, collection: str) -> None:
        """Look again next time: the collection may have been made anew."""
        with self._lock:
            self._noted.pop(collection, None)


def fact_of(model: str, part: Part, kind: OutputKind) -> Fact:
    """What decides the numbers of a part's output beside its space; `device` is its kind. `attention` is what
    computed it, and only there if that was without padding; `compiled` only if layers were;
    `transport` is the format in which they travelled, and only there if that is not float32."""
    notes = part.notes
    travelled = str(part.vectors[kind].values.dtype) if kind in part.vectors else "float32"
    return {
        "model": model,
        "backend": str(notes.get("backend", "")),
        "device": str(notes.get("device", "")).partition(":")[0],
        "dtype": str(notes.get("dtype", "")),
        "tf32": bool(notes.get("tf32", False)),
        "quantization": str(notes.get("quantization", "")),
        **({"attention": str(notes["attention"])} if notes.get("attention") else {}),
        **({"compiled": True} if notes.get("compiled") else {}),
        **({} if travelled == "float32" else {"transport": travelled}),
    }


def recorded(notes: Mapping[str, Any]) -> dict[str, list[Fact]]:
    """The facts in a collection's notes, by named vector, in a steady order."""
    found: dict[str, list[Fact]] = {}
    for key in sorted(notes):
        if key.startswith(NOTE):
            found.setdefault(key.removeprefix(NOTE).rpartition("/")[0], []).append(notes[key])
    return found


def notes_of(notes: Mapping[str, Any], vectors: Collection[str]) -> list[str]:
    """The keys of a collection's notes that are facts about these named vectors."""
    return [k for k in notes if k.startswith(NOTE) and k.removeprefix(NOTE).rpartition("/")[0] in vectors]


def _key(vector: str, fact: Fact) -> str:
    digest = hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()[:8]
    return f"{NOTE}{vector}/{digest}"
