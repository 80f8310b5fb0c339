"""How a model is served: what shows in its vectors beyond the model itself."""

from __future__ import annotations

from dataclasses import replace
from typing import cast, get_args

from registry.errors import PlanError
from registry.models import ModelSpec, Truncation, Variant

TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)


def served(spec: ModelSpec, variant: str = "", truncation: str = "cut") -> ModelSpec:
    """The spec of a model in one of its variants, under a way to treat too long texts.

    Raises PlanError, naming those there are, for a variant or a treatment that is none.
    """
    if variant and variant not in spec.variants:
        known = ", ".join(spec.variants) or "none"
        raise PlanError(f"{spec.name} has no variant {variant!r}; its variants: {known}")
    if truncation not in TRUNCATIONS:
        raise PlanError(f"a too long text cannot be treated by {truncation!r}; say {', '.join(TRUNCATIONS)}")
    return replace(spec, variant=cast("Variant", variant), truncation=truncation)
