"""Which models' weights are on this machine, looked at as a worker would, and without downloading any."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from registry.errors import WeightsError
from registry.models import ModelSpec
from registry.settings import Settings
from worker.weights import Weights, is_here, locate

#: How long the hub may take to answer whether it is there. Seconds.
HUB_SECONDS = 3.0
#: The hub's snapshot directories are named by their revision.
_REVISION = re.compile(r"[0-9a-f]{40}")
_SERVING = ("torch", "onnxruntime")


@dataclass(frozen=True)
class Stock:
    """One model's weights on this machine."""

    model: str
    #: Whether they are whole, and what the registry says they are.
    good: bool
    path: str = ""
    source: str = ""
    #: Empty where the directory does not say.
    revision: str = ""
    #: SHA-256 of the weights, if the registry knows it and they have it.
    sha256: str = ""
    #: What is wrong or where was looked, and what to do.
    problem: str = ""


def take_stock(spec: ModelSpec, settings: Settings) -> Stock:
    """Look at a model's files, sizes, digests and config; digests take a second or two per GB."""
    try:
        found = locate(spec, settings, download=False)
    except WeightsError as error:
        return Stock(spec.name, good=False, problem=str(error))
    revision = _revision(found)
    if revision not in ("", spec.revision):
        return Stock(
            spec.name,
            good=False,
            path=str(found.path),
            source=found.source,
            revision=revision,
            problem=f"{found.path} is revision {revision}, and the registry pins {spec.revision}",
        )
    return Stock(spec.name, True, str(found.path), found.source, revision, found.sha256)


def whereabouts(spec: ModelSpec, settings: Settings) -> str:
    """Where the weights are, at a glance: no file is read, no network asked."""
    if not any(importlib.util.find_spec(name) for name in _SERVING) and spec.name not in settings.weights:
        return "not looked at: this installation serves no model"
    return is_here(spec, settings) or "not on this machine"


def hub_answer(spec: ModelSpec) -> str:
    """Whether the Hugging Face hub can be asked for a model, in words."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        return "not asked: huggingface_hub is not installed (it comes with the extra [cpu] or [gpu])"
    if constants.is_offline_mode():
        return "not asked: HF_HUB_OFFLINE is set"
    hub: Any = huggingface_hub
    try:
        hub.HfApi().repo_info(spec.hub_id, revision=spec.revision, timeout=HUB_SECONDS)
    except Exception as error:  # the client's own, its HTTP library's and the system's errors share no root
        return f"cannot be reached ({type(error).__name__})"
    return f"reachable, and has {spec.hub_id}@{spec.revision[:12]}"


def _revision(found: Weights) -> str:
    """The revision of a snapshot, as its source or its directory's name says."""
    return found.revision or (found.path.name if _REVISION.fullmatch(found.path.name) else "")
