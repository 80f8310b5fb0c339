"""Snapshots that are complete and hold next to no weights: for what is checked before loading."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from registry.models import SAFETENSORS, ModelSpec
from tests.checkpoints.material import write_json

_POOLINGS = {"mean": "mean_tokens", "cls": "cls_token", "last-token": "lasttoken"}


def hollow(spec: ModelSpec, path: Path, *, shards: int = 0, **config: Any) -> Path:
    """Write every file that the registry wants of the model, with the registry's sizes in config.json.

    Parameters:
        shards: how many files the safetensors are cut into; 0: one file without an index.
        config: keys of config.json that differ.
    """
    path.mkdir(parents=True, exist_ok=True)
    known = spec.architecture
    sizes: dict[str, Any] = {
        "architectures": [known.type],
        "model_type": known.model_types[0],
        "num_hidden_layers": known.layers,
        "hidden_size": known.hidden,
        "num_attention_heads": known.heads,
        "num_key_value_heads": known.kv_heads,
        "intermediate_size": known.ffn,
        "vocab_size": known.vocabulary,
        "max_position_embeddings": spec.max_tokens + 2,
    }
    write_json(path / "config.json", {**sizes, **config})
    write_json(path / "tokenizer.json", {})
    if spec.pooling in _POOLINGS:
        write_json(path / "modules.json", [])
        pooling = {f"pooling_mode_{name}": name == _POOLINGS[spec.pooling] for name in _POOLINGS.values()}
        write_json(
            path / "1_Pooling" / "config.json", {"word_embedding_dimension": spec.dimension, **pooling}
        )
    for file in spec.files:
        if file.name == SAFETENSORS and shards:
            _sharded(path, shards)
            continue
        target = path / file.name
        target.parent.mkdir(exist_ok=True)
        match target.suffix:
            case ".safetensors":
                save_file({"weight": np.zeros(64, np.float32)}, target)
            case ".json":
                write_json(target, {})
            case _:
                with zipfile.ZipFile(target, "w") as archive:
                    archive.writestr("archive/data.pkl", b"")
                    archive.writestr("archive/data/0", bytes(256))
    return path


def _sharded(path: Path, count: int) -> None:
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        save_file({f"layers.{i}.weight": np.zeros(64, np.float32)}, path / name)
    weight_map = {f"layers.{i}.weight": name for i, name in enumerate(names)}
    write_json(path / f"{SAFETENSORS}.index.json", {"metadata": {}, "weight_map": weight_map})


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    write_json(file, {**json.loads(file.read_text()), **changes})


def cut_off(file: Path, by: int = 1) -> None:
    """Take bytes off a file's end, as a download that broke does."""
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - by)
