"""Weights in safetensors, one file or shards that an index lists: their headers, and tensors one by one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from registry.errors import WeightsError
from registry.models import SAFETENSORS, ModelSpec

if TYPE_CHECKING:
    import torch

#: Lists the shards of weights that are cut into several files.
SAFETENSORS_INDEX = f"{SAFETENSORS}.index.json"
#: A header that claims more is refused unread, as the library itself refuses it. Bytes.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet."""

    file: Path
    name: str
    #: Reads it, straight to the device; only while the iteration that gave it stands at this tensor.
    read: Callable[[], torch.Tensor]


def shards(spec: ModelSpec, path: Path) -> list[Path]:
    """The safetensors files of a snapshot: one, or as many as its index lists.

    Raises WeightsError for an index that lists no files of this directory, and for one beside a single file:
    libraries differ in which of the two they read, and what was checked must be what is loaded.
    """
    index, single = path / SAFETENSORS_INDEX, path / SAFETENSORS
    if not index.is_file():
        return [single]
    if single.is_file():
        raise WeightsError(
            f"{spec.name}: {path} holds {SAFETENSORS} and {SAFETENSORS_INDEX}, two sets of weights; take the "
            f"snapshot {spec.hub_id}@{spec.revision}, or remove the one that is not the model's"
        )
    return [path / name for name in sorted(set(_listed(spec, index).values()))]


def check_index(spec: ModelSpec, path: Path) -> None:
    """Raise WeightsError unless each shard holds just the tensors that the index, if there is one, says."""
    index = path / SAFETENSORS_INDEX
    if not index.is_file():
        return
    listed = _listed(spec, index)
    for shard in shards(spec, path):
        there = header(spec, shard).keys()
        wanted = {name for name, where in listed.items() if where == shard.name}
        if wanted != there:
            one = min(wanted ^ there)
            raise WeightsError(
                f"{spec.name}: {shard} and {SAFETENSORS_INDEX} differ in {len(wanted ^ there)} tensors that "
                f"only one of them has in this shard, {one} for one; download both again, from one revision"
            )


def header(spec: ModelSpec, file: Path) -> dict[str, Any]:
    """The entries of a safetensors file by tensor name.

    Raises WeightsError unless the file is exactly as long as they say.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else MAX_HEADER_BYTES + 1
        head = opened.read(length) if length <= min(size, MAX_HEADER_BYTES) else b""
    try:
        entries = json.loads(head)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, TypeError, LookupError):
        raise WeightsError(f"{spec.name}: {file} is not a safetensors file; download it again") from None
    if size != 8 + length + end:
        raise WeightsError(
            f"{spec.name}: {file} has {size} bytes and should have {8 + length + end}: the download was cut "
            "off; download it again"
        )
    found: dict[str, Any] = entries
    return found


def stored(files: Iterable[Path], device: str = "cpu") -> Iterator[Stored]:
    """Every tensor of the files, file after file.

    Raises OSError or SafetensorError where a file cannot be read.
    """
    for file in files:
        with safe_open(str(file), "pt", device=device) as opened:
            for name in opened.keys():  # noqa: SIM118
                yield Stored(file, name, partial(opened.get_tensor, name))


def _listed(spec: ModelSpec, index: Path) -> dict[str, str]:
    """File by tensor, as the index says."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        usable = bool(listed) and all(Path(name).name == name for name in listed.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise WeightsError(f"{spec.name}: {index} lists no shards of this directory; download it again")
    found: dict[str, str] = listed
    return found
