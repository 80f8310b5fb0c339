"""What is refused before anything is loaded: files that are missing, cut off or altered, and other models."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from registry.errors import WeightsError
from registry.models import MODELS, File, model
from registry.settings import Settings, load_settings
from tests.checkpoints.hollow import cut_off, edit_json, hollow
from worker.snapshot import check_snapshot, max_tokens, missing
from worker.tensors import shards
from worker.weights import is_here, locate

BGE, CODE, V4, RERANKER = "bge-m3", "jina-code-embeddings-1.5b", "jina-embeddings-v4", "jina-reranker-v3"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def given(name: str, path: Path, *, fake: bool = False) -> Settings:
    return load_settings(weights={name: path}, fake_weights=fake)


def refused(name: str, path: Path, *, fake: bool = False) -> str:
    """Why `locate` refuses the directory; every reason names the file or directory and what to do."""
    with pytest.raises(WeightsError) as caught:
        locate(model(name), given(name, path, fake=fake))
    said = str(caught.value)
    assert str(path) in said
    assert any(way in said for way in ("download", "take the", "name a complete snapshot")), said
    return said


@pytest.mark.parametrize("name", [CODE, V4, RERANKER])
@pytest.mark.parametrize("count", [0, 2])
def test_a_whole_snapshot_is_taken(tmp_path: Path, name: str, count: int) -> None:
    path = hollow(model(name), tmp_path / "snapshot", shards=count)
    found = locate(model(name), given(name, path))
    assert (found.path, found.source, found.sha256) == (path, "settings", "")
    assert found.max_tokens == model(name).max_tokens
    assert len(shards(model(name), path)) == (count or 1)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *((BGE, f) for f in ("pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt", "config.json")),
        *((CODE, f) for f in ("model.safetensors", "modules.json", "tokenizer.json", "config.json")),
        *((V4, f"adapters/adapter_{f}") for f in ("config.json", "model.safetensors")),
        (RERANKER, "model.safetensors"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, file: str) -> None:
    path = hollow(model(name), tmp_path / "snapshot")
    assert missing(model(name), path) == ""
    (path / file).unlink()
    assert f"lacks {file}; name a complete snapshot" in refused(name, path)
    assert is_here(model(name), given(name, path)) == ""


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot", shards=2)
    (path / SECOND).unlink()
    assert f"lacks {SECOND}, which {INDEX} lists" in refused(CODE, path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_says_nothing_usable_is_refused(tmp_path: Path, index: str) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot", shards=2)
    (path / INDEX).write_text(index)
    assert INDEX in refused(CODE, path)
    assert is_here(model(CODE), given(CODE, path)) == ""


def test_an_index_of_another_revision_is_refused(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot", shards=2)
    listed = json.loads((path / INDEX).read_text())["weight_map"]
    edit_json(path / INDEX, weight_map={**listed, "layers.9.weight": FIRST})
    assert "layers.9.weight" in refused(CODE, path)


def test_a_tensor_that_the_index_puts_elsewhere_is_refused(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot", shards=2)
    tensors = load_file(path / FIRST)
    save_file({**tensors, "layers.1.weight": np.ones(64, np.float32)}, path / FIRST)
    # Which of the two is loaded would be the library's choice.
    assert "layers.1.weight" in refused(CODE, path)


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot", shards=2)
    save_file({"weight": np.ones(64, np.float32)}, path / "model.safetensors")
    assert "two sets of weights" in refused(CODE, path)
    assert is_here(model(CODE), given(CODE, path)) == ""


@pytest.mark.parametrize("key", ["transformers_weights", "quantization_config"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_config_that_leads_to_other_weights_is_refused(tmp_path: Path, key: str, nested: bool) -> None:
    values = {key: "other.safetensors"}
    path = hollow(model(V4), tmp_path / "snapshot", **({"text_config": values} if nested else values))
    assert f"it has {key}" in refused(V4, path, fake=True)


@pytest.mark.parametrize("by", [1, 200, 310])
@pytest.mark.parametrize("file", [FIRST, SECOND])
def test_a_shard_that_was_cut_off_is_refused(tmp_path: Path, file: str, by: int) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot", shards=2)
    cut_off(path / file, by)
    said = refused(CODE, path)
    assert file in said
    assert "cut off" in said or "not a safetensors file" in said


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot")
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert "should have" in refused(CODE, path)


def test_a_header_that_claims_too_much_is_refused_unread(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot")
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + content[8:])
    assert "not a safetensors file" in refused(CODE, path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt"])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, file: str) -> None:
    path = hollow(model(BGE), tmp_path / "snapshot")
    cut_off(path / file, 30)
    said = refused(BGE, path, fake=True)
    assert file in said
    assert "cut off" in said


def test_a_pickle_is_refused_and_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "touched").touch, ())

    path = hollow(model(BGE), tmp_path / "snapshot")
    (path / "sparse_linear.pt").write_bytes(pickle.dumps(Evil()))
    assert "unpickling" in refused(BGE, path, fake=True)
    assert not (tmp_path / "touched").exists()


def test_weights_of_another_size_or_digest_are_refused(tmp_path: Path) -> None:
    spec = model(BGE)
    path = hollow(spec, tmp_path / "snapshot")
    assert "registry names 2271145830" in refused(BGE, path)
    names = [file.name for file in spec.files]
    right = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    known = replace(
        spec, files=tuple(File(n, right[n]) for n in names), weights_sha256=right["pytorch_model.bin"]
    )
    assert check_snapshot(known, path, made_up=False) == right["pytorch_model.bin"]
    for name in names:
        content = bytearray((path / name).read_bytes())
        content[80] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name} has SHA-256 .* names {right[name]}"):
            check_snapshot(known, path, made_up=False)
        content[80] ^= 1
        (path / name).write_bytes(content)


SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 3,
    "vocab_size": 3,
    "max_position_embeddings": 300,
}
SHOWING = {"hidden_size": 768, "model_type": "bert", "architectures": ["BertForMaskedLM"]}


@pytest.mark.parametrize("key", [*SIZES, *SHOWING])
def test_a_config_that_contradicts_the_registry_is_refused(tmp_path: Path, key: str) -> None:
    value = {**SIZES, **SHOWING}[key]
    path = hollow(model(CODE), tmp_path / "snapshot", **{key: value})
    said = refused(CODE, path)
    assert f"{'its architecture' if key == 'architectures' else key} is " in said
    if key in SHOWING:
        # Made-up weights may be small, and not of another kind.
        assert refused(CODE, path, fake=True) == said
    else:
        assert locate(model(CODE), given(CODE, path, fake=True)).path == path


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    path = hollow(model(RERANKER), tmp_path / "snapshot", head_dim=64)
    assert "head_dim is 64, not 128" in refused(RERANKER, path, fake=True)


def test_made_up_weights_may_read_fewer_tokens(tmp_path: Path) -> None:
    path = hollow(model(CODE), tmp_path / "code", max_position_embeddings=300)
    assert locate(model(CODE), given(CODE, path, fake=True)).max_tokens == 300
    path = hollow(model(BGE), tmp_path / "bge", max_position_embeddings=302, pad_token_id=1)
    assert max_tokens(model(BGE), path) == 300


def test_a_class_of_upstreams_own_is_no_contradiction(tmp_path: Path) -> None:
    for name in (CODE, V4, RERANKER):
        path = hollow(model(name), tmp_path / name, architectures=["JinaForRanking"])
        assert locate(model(name), given(name, path)).path == path


def test_every_model_says_what_its_config_may_be() -> None:
    assert all(spec.architecture.model_types for spec in MODELS.values())


def test_sizes_of_a_nested_text_config_count(tmp_path: Path) -> None:
    path = hollow(model(V4), tmp_path / "snapshot", hidden_size=1, text_config={"hidden_size": 2048})
    assert locate(model(V4), given(V4, path)).path == path
    edit_json(path / "config.json", text_config={"hidden_size": 1})
    assert "hidden_size is 1, not 2048" in refused(V4, path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    path = hollow(model(CODE), tmp_path / "snapshot")
    (path / "config.json").write_text(content)
    assert "config.json" in refused(CODE, path)


@pytest.mark.parametrize("name", [BGE, CODE])
@pytest.mark.parametrize("said_as", ["flags", "word"])
def test_another_pooling_or_width_is_refused(tmp_path: Path, name: str, said_as: str) -> None:
    path = hollow(model(name), tmp_path / "snapshot")
    file = path / "1_Pooling" / "config.json"
    width = model(name).dimension
    right = {BGE: "cls", CODE: "lasttoken"}[name]
    if said_as == "word":
        # As later versions of sentence-transformers write it.
        file.write_text(json.dumps({"embedding_dimension": width, "pooling_mode": right}))
    assert locate(model(name), given(name, path, fake=True)).path == path
    if said_as == "word":
        edit_json(file, pooling_mode="mean")
    else:
        flags = {key: False for key in json.loads(file.read_text()) if key.startswith("pooling_mode_")}
        edit_json(file, **{**flags, "pooling_mode_mean_tokens": True})
    assert f"its pooling is mean, not {model(name).pooling}" in refused(name, path, fake=True)
    if said_as == "flags":
        # Both at once: the two vectors, one after the other.
        edit_json(file, **dict.fromkeys(flags, True))
        assert f"not {model(name).pooling}" in refused(name, path, fake=True)
    path = hollow(model(name), tmp_path / "narrow")
    edit_json(path / "1_Pooling" / "config.json", word_embedding_dimension=512)
    assert f"its dimension is 512, not {width}" in refused(name, path, fake=True)
