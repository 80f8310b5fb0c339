"""Vector spaces: what must be equal for two vectors to be comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from registry.errors import PlanError, SpaceMismatch
from registry.models import ModelSpec, OutputKind, Truncation, Variant

#: Stands where a revision would, for the encoders that make vectors up; keeps them from real ones.
FAKE_REVISION = "fake-1"
#: What a variant adds to a space's weights, and a treatment of too long texts to its pooling. `fail` changes
#: no vector, but a worker that would cut must not serve a plan that forbids it.
_WEIGHTS: dict[Variant | Literal[""], str] = {"": "", "int8": "+int8-dynamic"}
_POOLING: dict[Truncation, str] = {"cut": "", "fail": "+fail", "split-and-pool": "+split"}


@dataclass(frozen=True)
class VectorSpace:
    """One space. Two vectors may stand under one name only if all these fields are equal."""

    model: str
    revision: str
    weights: str
    task: str
    prompt_document: str
    prompt_query: str
    pooling: str
    max_tokens: int
    dimension: int
    normalised: bool
    output: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the canonical JSON of all fields."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: VectorSpace) -> str:
        """The fields in which two spaces differ, as `field: this ≠ other`."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{k}: {mine[k]!r} ≠ {theirs[k]!r}" for k in mine if mine[k] != theirs[k])


def space_of(spec: ModelSpec, kind: OutputKind, task: str = "", *, fake: bool = False) -> VectorSpace:
    """The space of one output of a model under a task (default: the model's own default task).

    Raises PlanError if the model does not know the task.
    """
    task = task or spec.default_task
    if task not in spec.prompts:
        known = ", ".join(repr(t) for t in spec.prompts if t) or "none"
        raise PlanError(f"{spec.name} has no task {task!r}; its tasks: {known}")
    prompt = spec.prompts[task]
    output = spec.output(kind)
    return VectorSpace(
        model=spec.name,
        revision=FAKE_REVISION if fake else spec.revision,
        weights=("" if fake else spec.weights_sha256) + _WEIGHTS[spec.variant],
        task=task,
        prompt_document=prompt.document,
        prompt_query=prompt.query,
        pooling=spec.pooling + _POOLING[spec.truncation],
        max_tokens=spec.max_tokens,
        dimension=output.dimension,
        normalised=kind != "sparse",
        output=kind,
    )


def space_mark(spaces: Iterable[VectorSpace]) -> str:
    """What a batch asks of a worker and a worker offers: the fingerprints of all outputs taken."""
    return "+".join(sorted(space.fingerprint for space in spaces))


def require_same(name: str, standing: VectorSpace, offered: VectorSpace, where: str) -> None:
    """Raise SpaceMismatch, naming both sides, unless the spaces are equal."""
    if standing != offered:
        raise SpaceMismatch(
            f"vector {name!r}: {where} holds space {standing.fingerprint} and was offered "
            f"{offered.fingerprint} ({standing.differences(offered)})"
        )
