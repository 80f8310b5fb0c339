"""What is not jina-embeddings-v4 is refused when it is loaded, with the reason; what is, is read by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from registry.errors import WeightsError
from registry.models import model
from registry.settings import Settings, load_settings
from tests.checkpoints import jina_v4 as recipe
from worker.encoders.factory import load_encoder
from worker.encoders.jina_v4_adapter import CONFIG, TENSORS, Adapter
from worker.encoders.jina_v4_model import PROJECTOR, JinaV4, load
from worker.encoders.torch_runtime import TorchRuntime

SPEC = model("jina-embeddings-v4")
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe.build(tmp_path_factory.mktemp("jina-v4"))


@pytest.fixture
def snapshot(good: Path, tmp_path: Path) -> Path:
    """A snapshot of links; a test replaces what it changes."""
    for file in good.rglob("*.*"):
        link = tmp_path / file.relative_to(good)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file)
    return tmp_path


def settings_of(snapshot: Path, **given: Any) -> Settings:
    return load_settings(
        **{"device": "cpu", "threads": 1, "fake_weights": True, "weights": {SPEC.name: snapshot}, **given}
    )


def refusal(snapshot: Path, **given: Any) -> str:
    with pytest.raises(WeightsError) as refused:
        load_encoder(SPEC.name, "retrieval", settings_of(snapshot, **given), ["dense", "multi"])
    print(refused.value)
    return str(refused.value)


def loaded(snapshot: Path) -> JinaV4:
    return load(SPEC, "retrieval", snapshot, TorchRuntime(SPEC, settings_of(snapshot)))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place of its link."""
    content = json.loads(file.read_text())
    change(content)
    file.unlink()
    file.write_text(json.dumps(content))


def edit_tensors(file: Path, change: Callable[[Tensors], Any]) -> None:
    """Change a safetensors file in place of its link, and the index with it."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)
    index = file.parent / INDEX
    if index.exists():

        def list_again(content: dict[str, Any]) -> None:
            others = {k: v for k, v in content["weight_map"].items() if v != file.name}
            content["weight_map"] = others | dict.fromkeys(tensors, file.name)

        edit(index, list_again)


def test_a_missing_file_is_named(snapshot: Path) -> None:
    for name in (TENSORS, CONFIG, SECOND, "tokenizer.json", "config.json"):
        file = snapshot / name
        target = file.readlink()
        file.unlink()
        assert Path(name).name in refusal(snapshot)
        file.symlink_to(target)
    assert loaded(snapshot)


@pytest.mark.parametrize("name", [FIRST, SECOND, TENSORS])
def test_a_file_that_was_cut_off_is_named(name: str, snapshot: Path) -> None:
    content = (snapshot / name).read_bytes()
    (snapshot / name).unlink()
    (snapshot / name).write_bytes(content[:-1000])
    assert f"{name} has {len(content) - 1000} bytes" in refusal(snapshot)
    (snapshot / name).write_bytes(content[:100])
    assert name in refusal(snapshot)


def test_a_missing_tensor_is_named(snapshot: Path) -> None:
    edit_tensors(snapshot / SECOND, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "lacks the tensor model.language_model.layers.1.mlp.up_proj.weight (1 in all)" in refusal(snapshot)


def test_a_tensor_that_only_the_index_has_is_named(snapshot: Path) -> None:
    edit(snapshot / INDEX, lambda content: content["weight_map"].update({"model.more.weight": SECOND}))
    assert "model.more.weight" in refusal(snapshot)


def test_the_projector_is_no_option(snapshot: Path) -> None:
    edit_tensors(snapshot / SECOND, lambda tensors: tensors.pop(f"{PROJECTOR}.bias"))
    assert f"lacks the tensor {PROJECTOR}.bias" in refusal(snapshot)


def test_a_tensor_of_a_third_layer_is_named(snapshot: Path) -> None:
    extra = {"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}
    edit_tensors(snapshot / SECOND, lambda tensors: tensors.update(extra))
    assert "model.layers.2.mlp.up_proj.weight that is no part" in refusal(snapshot)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("hidden_size", 1024, "hidden_size is 1024, not 2048"),
        ("num_attention_heads", 8, "width of a head is 256, not 128"),
        ("num_hidden_layers", 1, "model.layers.1."),
        ("num_hidden_layers", 3, "layers.2."),
        ("num_key_value_heads", 4, r"config.json says \[512"),
        ("intermediate_size", 512, r"config.json says \[(512|2048, 512)"),
        ("vocab_size", 512, r"embed_tokens.weight is \[768, 2048\], and config.json says \[512, 2048\]"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05, not 1e-06"),
        ("rope_theta", 10000.0, "rope_theta is 10000.0, not 1000000.0"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', not 'silu'"),
        ("rms_norm_eps", "small", "cannot be loaded"),
        ("use_sliding_window", True, "use_sliding_window is True, not False"),
    ],
)
def test_a_text_config_that_contradicts_is_refused(key: str, value: Any, why: str, snapshot: Path) -> None:
    edit(snapshot / "config.json", lambda content: content["text_config"].update({key: value}))
    assert re.search(why, refusal(snapshot))


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("multi_vector_projector_dim", 96, "multi_vector_projector_dim is 96, not 128"),
        ("single_vector_pool_strategy", "cls", "single_vector_pool_strategy is 'cls', not 'mean'"),
        ("matryoshka_dims", [64, 2048], "matryoshka_dims is [64, 2048]"),
        ("task_names", ["code"], "task_names lacks 'retrieval'"),
        ("truncate_dim", 512, "truncate_dim is 512, not None"),
        ("model_type", "qwen2", "model_type is qwen2, not qwen2_5_vl"),
    ],
)
def test_a_config_of_another_model_is_refused(key: str, value: Any, why: str, snapshot: Path) -> None:
    edit(snapshot / "config.json", lambda content: content.update({key: value}))
    assert why in refusal(snapshot)


def test_made_up_weights_are_refused_where_real_ones_are_asked_for(snapshot: Path) -> None:
    assert "num_hidden_layers is 2, not 36" in refusal(snapshot, fake_weights=False)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"target_modules": ["q_proj", "v_proj"]},
            "does not target model.language_model.layers.0.mlp.down_proj",
        ),
        ({"target_modules": ".*(q_proj|k_proj).*"}, "does not target"),
        ({"exclude_modules": ".*projector.*"}, f"does not target {PROJECTOR} (1 of 15 parts in all)"),
        ({"r": 4}, "another rank"),
        ({"r": None}, "no rank and alpha"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"use_dora": True}, "use_dora is True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_an_adapter_config_of_another_kind_is_refused(
    change: dict[str, Any], why: str, snapshot: Path
) -> None:
    edit(snapshot / CONFIG, lambda content: content.update(change))
    assert why in refusal(snapshot)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_B.retrieval.weight"), "no lora_A and lora_B for retrieval at"),
        (
            lambda t: t.update({f"{QUERY}.lora_A.retrieval.weight": torch.zeros(4, 2048)}),
            "another rank at model.language_model.layers.0.self_attn.q_proj than the 8",
        ),
        (
            lambda t: t.update({f"{QUERY}.lora_A.retrieval.weight": torch.zeros(8, 1024)}),
            "is for [2048, 1024], not [2048, 2048]",
        ),
        (
            lambda t: t.update(
                {"base_model.model.model.visual.blocks.0.attn.qkv.lora_A.code.weight": torch.zeros(1)}
            ),
            "which is no adapted part of the model",
        ),
        (lambda t: t.update({"something.else": torch.zeros(1)}), "something.else"),
    ],
)
def test_adapter_tensors_of_another_model_are_refused(
    change: Callable[[Tensors], Any], why: str, snapshot: Path
) -> None:
    edit_tensors(snapshot / TENSORS, change)
    assert why in refusal(snapshot)


def test_a_task_that_the_adapters_lack_is_refused(snapshot: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".retrieval." in name]:
            del tensors[name]

    edit_tensors(snapshot / TENSORS, drop)
    assert "no lora_A and lora_B for retrieval" in refusal(snapshot)


def test_a_tokenizer_of_another_vocabulary_is_refused(snapshot: Path) -> None:
    def grow(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary.update({f"more-{i}": len(vocabulary) + 100 + i for i in range(300)})

    edit(snapshot / "tokenizer.json", grow)
    assert "embeddings for 768 tokens and a tokenizer of" in refusal(snapshot)


def test_weights_are_found_under_either_name_and_in_one_file(good: Path, snapshot: Path) -> None:
    wanted = loaded(good)
    tensors = load_file(snapshot / FIRST) | load_file(snapshot / SECOND)
    for name in (FIRST, SECOND, INDEX):
        (snapshot / name).unlink()
    # As transformers saves the same model again: pictures under `model`, too, and the tied head beside them.
    renamed = {
        name if name.startswith(PROJECTOR) else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in tensors.items()
        if not name.startswith("visual.")
    }
    renamed |= {f"model.{name}": tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    renamed["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(renamed, snapshot / "model.safetensors")
    found = loaded(snapshot)
    for name, parameter in wanted.text.named_parameters():
        assert torch.equal(found.text.get_parameter(name), parameter)
    assert torch.equal(found.projector.weight, wanted.projector.weight)


def test_a_tensor_under_both_names_is_refused(snapshot: Path) -> None:
    def twice(tensors: Tensors) -> None:
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"] * 2

    edit_tensors(snapshot / SECOND, twice)
    assert re.search(
        r"has a tensor model\.(language_model\.)?norm\.weight that stands there twice", refusal(snapshot)
    )


def test_a_factor_under_two_names_is_refused(snapshot: Path) -> None:
    name = f"base_model.model.{PROJECTOR}.lora_A.{{}}retrieval.weight"

    def twice(tensors: Tensors) -> None:
        tensors[name.format("default.")] = tensors[name.format("")] * 2

    edit_tensors(snapshot / TENSORS, twice)
    assert "under two names" in refusal(snapshot)


def test_a_merge_is_not_rounded_to_tf32_where_passes_may_be(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def merged(self: Adapter, module: str, weight: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return weight

    monkeypatch.setattr(Adapter, "merged", merged)
    runtime = TorchRuntime(SPEC, settings_of(good))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        load(SPEC, "retrieval", good, runtime)
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_picture_part_is_not_read(good: Path, snapshot: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("visual.")]:
            del tensors[name]

    edit_tensors(snapshot / FIRST, drop)
    wanted = loaded(good)
    found = loaded(snapshot)
    assert torch.equal(found.text.embed_tokens.weight, wanted.text.embed_tokens.weight)
    mine = {name for name, _ in found.text.named_parameters()}
    assert not any("visual" in name for name in mine)


def test_the_merge_is_the_weight_and_the_scaled_product(good: Path) -> None:
    shard, adapters = load_file(good / SECOND), load_file(good / TENSORS)
    a = adapters[f"base_model.model.{PROJECTOR}.lora_A.retrieval.weight"].double()
    b = adapters[f"base_model.model.{PROJECTOR}.lora_B.retrieval.weight"].double()
    product = b @ a * recipe.ALPHA / recipe.RANK
    weight = shard[f"{PROJECTOR}.weight"].double()
    found = loaded(good).projector
    torch.testing.assert_close(found.weight.double(), weight + product, atol=1e-6, rtol=0)
    assert (product.abs().max() > 0.01).item()
    assert torch.equal(found.bias, shard[f"{PROJECTOR}.bias"].float())
