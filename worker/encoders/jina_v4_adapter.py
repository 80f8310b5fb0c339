"""The low-rank adapters of jina-embeddings-v4: three tasks in one file, one of them to be merged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from registry.errors import WeightsError
from worker.tensors import stored

#: Where the adapters stand in a snapshot.
CONFIG = "adapters/adapter_config.json"
TENSORS = "adapters/adapter_model.safetensors"
#: Before the name of every module in the adapters' file: peft's two wrappers.
_WRAPPED = "base_model.model."
#: A factor's name after its module's: A or B, peft's name of the adapter where it was kept, the task.
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])\.(default\.)?(?P<task>[\w-]+)\.weight$")
#: Settings of peft that change what an adapter computes, and their values without effect.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_rslora": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layers_to_transform": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([],),
}


@dataclass(frozen=True)
class Adapter:
    """The factors of one task: an adapted Linear computes `W x + scaling · B A x`."""

    scaling: float
    #: `A` `[r, in]` and `B` `[out, r]` by module, as stored.
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    def merged(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """`W + scaling · B A` in float32, on the weight's device; the weight alone where nothing adapts it.

        Raises ValueError if the shapes do not fit.
        """
        if module not in self.factors:
            return weight
        a, b = (factor.to(weight.device, torch.float32) for factor in self.factors[module])
        if (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise ValueError(
                f"the adapter of {module} is for [{b.shape[0]}, {a.shape[1]}], not {list(weight.shape)}"
            )
        return torch.addmm(weight.float(), b, a, alpha=self.scaling)


def read_adapter(snapshot: Path, task: str, linears: frozenset[str]) -> Adapter:
    """The adapter of `task`, which must adapt exactly the modules `linears`, by upstream's names.

    Raises WeightsError where config and tensors contradict each other or that list, or ask for more than a
    plain low-rank product; OSError, ValueError or SafetensorError where a file cannot be read.
    """
    config = json.loads((snapshot / CONFIG).read_text(encoding="utf-8"))
    rank, alpha = _sizes(snapshot, config)
    _check_targets(snapshot, config, linears)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for one in stored([snapshot / TENSORS]):
        parts = _FACTOR.match(one.name.removeprefix(_WRAPPED))
        if parts is None or parts["module"] not in linears:
            raise WeightsError(f"{one.file} adapts {one.name}, which is no adapted part of the model")
        if parts["task"] == task:
            pair = found.setdefault(parts["module"], {})
            if parts["factor"] in pair:
                raise WeightsError(f"{one.file} has {one.name} under two names")
            pair[parts["factor"]] = one.read()
    factors = {}
    for module in sorted(linears):
        pair = found.get(module, {})
        if pair.keys() != {"A", "B"}:
            raise WeightsError(f"{snapshot / TENSORS} has no lora_A and lora_B for {task} at {module}")
        if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            raise WeightsError(
                f"{snapshot / TENSORS} has another rank at {module} than the {rank} of {CONFIG}"
            )
        factors[module] = (pair["A"], pair["B"])
    return Adapter(alpha / rank, factors)


def _sizes(snapshot: Path, config: Any) -> tuple[int, float]:
    """Rank and alpha of a plain LoRA."""
    rank, alpha = (config.get("r"), config.get("lora_alpha")) if isinstance(config, dict) else (None, None)
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise WeightsError(f"{snapshot / CONFIG} gives no rank and alpha")
    wrong = [
        f"{key} is {config[key]!r}"
        for key, plain in _PLAIN.items()
        if config.get(key) is not None and config[key] not in plain
    ]
    if config.get("peft_type", "LORA") != "LORA":
        wrong.append(f"peft_type is {config['peft_type']!r}")
    if wrong:
        raise WeightsError(
            f"{snapshot / CONFIG} asks for what this version does not compute: {'; '.join(wrong)}"
        )
    return rank, float(alpha)


def _check_targets(snapshot: Path, config: Mapping[str, Any], linears: frozenset[str]) -> None:
    """Raise WeightsError unless the config, read as peft reads it, targets all of `linears`."""
    target, exclude = config.get("target_modules"), config.get("exclude_modules")
    lacking = sorted(name for name in linears if not _names(target, name) or _names(exclude, name))
    if lacking:
        raise WeightsError(
            f"{snapshot / CONFIG} does not target {lacking[0]} ({len(lacking)} of {len(linears)} parts "
            "in all); it belongs to another adapter"
        )


def _names(pattern: Any, module: str) -> bool:
    """Whether peft's `target_modules` or `exclude_modules` means that module."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern or ())
