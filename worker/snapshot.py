"""A snapshot directory, looked at before anything is loaded: its files, whole and unaltered, and its config.

Nothing here runs or unpickles what it reads: JSON, the headers of safetensors files, the directories of zip
archives, digests.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry.errors import WeightsError
from registry.models import MODELS, SAFETENSORS, ModelSpec
from worker.tensors import SAFETENSORS_INDEX, check_index, header, shards

#: Names of the registry's poolings in `1_Pooling/config.json`.
_POOLINGS = {"mean": "mean", "cls": "cls", "last-token": "lasttoken"}
#: Which of the sizes in config.json decide what an output is; the others may differ in made-up weights.
_SHOWING = ("hidden_size", "head_dim")
#: Keys of config.json that make a library read other weights than those checked here, or read them otherwise.
_ELSEWHERE = ("transformers_weights", "quantization_config")


def missing(spec: ModelSpec, path: Path) -> str:
    """The first file that the directory lacks to be a snapshot of the model; empty if none."""
    ready_made = spec.backend == "onnxruntime" and (path / "model.onnx").is_file()
    wanted = ["tokenizer.json"]
    if not ready_made:
        wanted.append("config.json")
    if spec.backend == "sentence-transformers":
        wanted.append("modules.json")
    for name in wanted:
        if not (path / name).is_file():
            return name
    if ready_made:
        return ""
    for file in spec.files:
        name = SAFETENSORS if file.name == "model.onnx" else file.name
        if name == SAFETENSORS and (path / SAFETENSORS_INDEX).is_file():
            try:
                listed = shards(spec, path)
            except WeightsError as error:
                return f"one readable set of weights ({error})"
            for shard in listed:
                if not shard.is_file():
                    return f"{shard.name}, which {SAFETENSORS_INDEX} lists"
        elif not (path / name).is_file():
            return f"model.onnx or {name}" if file.name == "model.onnx" else name
    return ""


def check_snapshot(spec: ModelSpec, path: Path, *, made_up: bool) -> str:
    """Raise WeightsError, saying which file and why, unless the directory holds this model, whole.

    `made_up` weights are not held to the registry's digests, nor to sizes that show in no output. Returns the
    digest of the weights where the registry knows one and they have it, else nothing.
    """
    if (path / "config.json").is_file():
        check_config(spec, path / "config.json", made_up=made_up)
    _check_pooling(spec, path)
    for file in _weight_files(spec, path):
        _check_whole(spec, file)
    check_index(spec, path)
    return "" if made_up else _check_digests(spec, path)


def max_tokens(spec: ModelSpec, path: Path) -> int:
    """The longest input: the registry's, or less where made-up weights know fewer positions. Tokens."""
    if not (path / "config.json").is_file():
        return spec.max_tokens
    config = _sizes(_json(spec, path / "config.json"))
    positions = config.get("max_position_embeddings", spec.max_tokens)
    if config.get("model_type") == "xlm-roberta":
        # RoBERTa counts positions from the padding's id + 1, so that many rows are never a token's.
        positions -= config.get("pad_token_id", 1) + 1
    return min(spec.max_tokens, int(positions))


def check_config(spec: ModelSpec, config_file: Path, *, made_up: bool = False) -> None:
    """Raise WeightsError, naming both sides, if config.json contradicts the registry.

    A key that config.json lacks contradicts nothing; where sizes of the text part are nested, those count.
    """
    config = _json(spec, config_file)
    sizes = _sizes(config)
    known = spec.architecture
    wanted = {
        "hidden_size": known.hidden,
        "head_dim": known.head_dim,
        "num_hidden_layers": known.layers,
        "num_attention_heads": known.heads,
        "num_key_value_heads": known.kv_heads,
        "intermediate_size": known.ffn,
        "vocab_size": known.vocabulary,
    }
    wrong = [
        f"{key} is {sizes[key]}, not {value}"
        for key, value in wanted.items()
        if value and sizes.get(key) not in (None, value) and (key in _SHOWING or not made_up)
    ]
    kind = config.get("model_type")
    if kind is not None and kind not in known.model_types:
        wrong.append(f"model_type is {kind}, not {' or '.join(known.model_types)}")
    families = {_family(other.architecture.type) for other in MODELS.values()} - {_family(known.type)}
    for name in config.get("architectures") or ():
        # A class of upstream's own contradicts nothing; one of another model's does.
        if _family(str(name)) in families:
            wrong.append(f"its architecture is {name}, not {known.type}")
    wrong += [f"it has {key}, which no model of the registry has" for key in _ELSEWHERE if sizes.get(key)]
    longest = sizes.get("max_position_embeddings", spec.max_tokens)
    if not made_up and longest < spec.max_tokens:
        wrong.append(f"max_position_embeddings is {longest}, under the registry's {spec.max_tokens} tokens")
    if wrong:
        raise WeightsError(
            f"{config_file} is not the {spec.name} that the registry describes: {'; '.join(wrong)}; take the "
            f"snapshot {spec.hub_id}@{spec.revision}"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex; a GB takes 1 to 2 s, far less than loading it, so it is done at each start."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _family(class_name: str) -> str:
    """`Qwen2` of `Qwen2Model` and of `Qwen2ForCausalLM`."""
    return re.sub(r"(Model|For[A-Z]\w*)$", "", class_name)


def _json(spec: ModelSpec, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{spec.name}: {file} cannot be read: {error}; download it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{spec.name}: {file} is not a JSON object; download it again")
    return content


def _check_pooling(spec: ModelSpec, path: Path) -> None:
    """Compare what `1_Pooling/config.json` says, in either of its spellings, with the registry."""
    file = path / "1_Pooling" / "config.json"
    wanted = _POOLINGS.get(spec.pooling)
    if wanted is None or not file.is_file():
        return
    config = _json(spec, file)
    modes = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    if isinstance(config.get("pooling_mode"), str):
        modes.add(config["pooling_mode"])
    wrong = []
    if modes and modes != {wanted}:
        wrong.append(f"its pooling is {', '.join(sorted(modes))}, not {spec.pooling}")
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", spec.dimension))
    if width != spec.dimension:
        wrong.append(f"its dimension is {width}, not {spec.dimension}")
    if wrong:
        raise WeightsError(
            f"{file} is not the {spec.name} that the registry describes: {'; '.join(wrong)}; take the "
            f"snapshot {spec.hub_id}@{spec.revision}"
        )


def _weight_files(spec: ModelSpec, path: Path) -> Iterator[Path]:
    for file in spec.files:
        if file.name == SAFETENSORS and (path / SAFETENSORS_INDEX).is_file():
            yield from shards(spec, path)
        elif (path / file.name).is_file():
            yield path / file.name
        elif (path / SAFETENSORS).is_file():
            yield path / SAFETENSORS


def _check_whole(spec: ModelSpec, file: Path) -> None:
    if file.suffix == ".safetensors":
        header(spec, file)
    elif file.suffix in (".bin", ".pt"):
        _check_archive(spec, file)
    elif file.suffix == ".json":
        _json(spec, file)


def _check_archive(spec: ModelSpec, file: Path) -> None:
    """Raise WeightsError unless the file is a whole archive of torch's: its directory stands at the end."""
    try:
        with zipfile.ZipFile(file) as archive:
            whole = any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        whole = False
    if not whole:
        raise WeightsError(
            f"{spec.name}: {file} is no whole archive of torch's: the download was cut off, or it is of a "
            "format that only unpickling could read, which is not done here; download it again"
        )


def _check_digests(spec: ModelSpec, path: Path) -> str:
    sizes = {file.name: file.bytes for file in spec.files if file.bytes}
    known = {file.name: file.sha256 for file in spec.files if file.sha256}
    # A graph that came ready-made has another digest; the golden vectors of the warm-up vouch for it.
    if known.pop("model.onnx", "") and not (path / "model.onnx").is_file():
        known[SAFETENSORS] = spec.weights_sha256
    for name, wanted in known.items():
        size = (path / name).stat().st_size
        if size != sizes.get(name, size):
            raise WeightsError(
                f"{spec.name}: {path / name} has {size} bytes, and the registry names {sizes[name]}; take "
                f"the weights of {spec.hub_id}@{spec.revision}"
            )
        digest = sha256_of(path / name)
        if digest != wanted:
            raise WeightsError(
                f"{spec.name}: {path / name} has SHA-256 {digest}, and the registry names {wanted}; take the "
                f"weights of {spec.hub_id}@{spec.revision}"
            )
    return spec.weights_sha256 if spec.weights_sha256 in known.values() else ""
