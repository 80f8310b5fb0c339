"""The text part of jina-embeddings-v4, on transformers' own layers, with one task's adapter merged in.

No code of the snapshot is run. Tensors are read by name, one after the other, straight to the device; the
adapter is added in float32 and the sum cast once. So beside the model itself (6.2 GB in bfloat16, twice that
in float32) loading takes a tensor in float32 (90 MB) and the adapter (0.1 GB). The picture part is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLTextModel

from registry.errors import WeightsError
from registry.models import ModelSpec
from worker.encoders.jina_v4_adapter import Adapter, read_adapter
from worker.encoders.torch_runtime import TorchRuntime
from worker.tensors import shards, stored

PROJECTOR = "multi_vector_projector"
#: What upstream's modules are called, in the adapters and in weights that transformers has saved again.
_TEXT = "model.language_model."
#: What the published shards call the same.
_PUBLISHED = "model."
#: Parts of the snapshot that a text does not go through.
_UNREAD = ("visual.", "model.visual.", "lm_head.")
#: What shows in every vector and in no tensor's shape.
_CONSTANTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "use_sliding_window": False}
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
#: Width of an attention head: two for each of the frequencies that `mrope_section` counts.
_HEAD = 128


@dataclass(frozen=True)
class JinaV4:
    """What a forward pass needs."""

    #: Token ids to the states after the final norm, `[b, t, 2048]`.
    text: Qwen2_5_VLTextModel
    #: A state to a row of the multi-vector, 128 wide.
    projector: nn.Linear


def load(spec: ModelSpec, task: str, snapshot: Path, runtime: TorchRuntime) -> JinaV4:
    """Load the model for a task. Raises WeightsError, naming the file, the tensor or the setting that is not
    the model's; InfrastructureError if the device has too little memory."""
    remedy = f"take the snapshot {spec.hub_id}@{spec.revision}"
    try:
        config = _text_config(spec, task, snapshot)
        # Without memory: every parameter is put in its place by `_fill`.
        with torch.device("meta"):
            text = Qwen2_5_VLTextModel._from_config(
                config, dtype=runtime.dtype, attn_implementation=runtime.attention
            )
            projector = nn.Linear(spec.dimension, spec.output("multi").dimension)
        modules = {_TEXT.removesuffix("."): text, PROJECTOR: projector}
        adapter = read_adapter(snapshot, task, _linears(modules))
        with runtime.loading(spec.name), runtime.exact(), torch.no_grad():
            _fill(shards(spec, snapshot), modules, adapter, runtime)
            # Its table is computed, not stored.
            text.rotary_emb = type(text.rotary_emb)(config).to(runtime.device.name)
    except WeightsError as error:
        raise WeightsError(f"{spec.name}: {error}; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError) as error:
        raise WeightsError(f"{spec.name}: {snapshot} cannot be loaded: {error}; {remedy}") from error
    return JinaV4(text.eval(), projector.eval())


def _text_config(spec: ModelSpec, task: str, snapshot: Path) -> Any:
    """The text part's config; raises WeightsError where config.json says what this encoder does not do."""
    file = snapshot / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    config = Qwen2_5_VLConfig.from_dict(content).text_config
    rope = config.rope_parameters
    pooling, width = spec.pooling, spec.output("multi").dimension
    expected: list[tuple[str, Any, Any]] = [
        ("hidden_size", config.hidden_size, spec.dimension),
        ("width of a head", config.hidden_size // config.num_attention_heads, _HEAD),
        ("multi_vector_projector_dim", content.get("multi_vector_projector_dim", width), width),
        ("single_vector_pool_strategy", content.get("single_vector_pool_strategy", pooling), pooling),
        ("matryoshka_dims", content.get("matryoshka_dims", [*spec.matryoshka]), [*spec.matryoshka]),
        ("truncate_dim", content.get("truncate_dim"), None),
        *((key, getattr(config, key), value) for key, value in _CONSTANTS.items()),
        *((key, rope.get(key), value) for key, value in _ROPE.items()),
    ]
    wrong = [f"{key} is {found!r}, not {wanted!r}" for key, found, wanted in expected if found != wanted]
    if task not in content.get("task_names", ()):
        wrong.append(f"task_names lacks {task!r}")
    if wrong:
        raise WeightsError(f"{file}: {'; '.join(wrong)}")
    return config


def _linears(modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """All Linear layers by upstream's names: those that the adapters adapt."""
    return frozenset(
        f"{root}.{name}" if name else root
        for root, module in modules.items()
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    )


def _fill(
    files: Sequence[Path], modules: Mapping[str, nn.Module], adapter: Adapter, runtime: TorchRuntime
) -> None:
    """Put every parameter in its place, merged and cast; WeightsError for a tensor too few or too many."""
    wanted = {
        f"{root}.{name}": parameter.shape
        for root, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    state: dict[str, torch.Tensor] = {}
    for one in stored(files, runtime.device.name):
        if one.name.startswith(_UNREAD):
            continue
        name = _name(one.name)
        if name not in wanted or name in state:
            problem = "that stands there twice" if name in state else "that is no part of the model"
            raise WeightsError(f"{one.file} has a tensor {one.name} {problem}")
        tensor = one.read()
        if tensor.shape != wanted[name]:
            raise WeightsError(
                f"{one.file}: {one.name} is {list(tensor.shape)}, and config.json says {list(wanted[name])}"
            )
        if name.endswith(".weight"):
            tensor = adapter.merged(name.removesuffix(".weight"), tensor)
        state[name] = tensor.to(runtime.dtype)
    lacking = sorted(wanted.keys() - state.keys())
    if lacking:
        raise WeightsError(f"{files[0].parent} lacks the tensor {lacking[0]} ({len(lacking)} in all)")
    for root, module in modules.items():
        mine = {k.removeprefix(f"{root}."): v for k, v in state.items() if k.startswith(f"{root}.")}
        module.load_state_dict(mine, assign=True)


def _name(stored_as: str) -> str:
    """Upstream's name of a tensor that is read."""
    if stored_as.startswith((_TEXT, f"{PROJECTOR}.")):
        return stored_as
    return _TEXT + stored_as.removeprefix(_PUBLISHED)
