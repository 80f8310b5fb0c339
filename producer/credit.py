"""How many bytes a batch's vectors will take in Redis, so that room for them is reserved before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from registry.chunks import Chunk
from registry.models import MAX_MULTIVECTOR_VALUES, ModelSpec, OutputKind, embedder
from registry.plan import Plan

#: safetensors header, frame and reasons of one part. Bytes.
_PART_OVERHEAD = 4096
#: A sparse entry: an int64 id and a float32 weight. Bytes.
_SPARSE_ENTRY = 12


def vector_bytes(plan: Plan, names: Sequence[str], chunks: Sequence[Chunk]) -> int:
    """An upper bound for the parts of a batch that lacks the vectors `names`.

    A text has at most one token per UTF-8 byte, plus its special tokens and prompt; per-token outputs are
    reserved for that many.
    """
    total = 0
    for model in plan.models_for(list(names)):
        spec = embedder(model)
        total += _PART_OVERHEAD
        for kind in plan.kinds(model):
            width = spec.output(kind).dimension
            if kind == "dense":
                total += len(chunks) * width * 4
                continue
            prompt = len(plan.space(model, kind).prompt_document.encode())
            most = _most_entries(plan, spec, kind)
            tokens = [min(len(c.text.encode()) + prompt + 8, most) for c in chunks]
            total += sum(tokens) * (width * 4 if kind == "multi" else _SPARSE_ENTRY)
    return total


def _most_entries(plan: Plan, spec: ModelSpec, kind: OutputKind) -> int:
    """Rows or weights of one text's output, at most; a text in windows is not bound by the model's limit."""
    whole = plan.truncate == "split-and-pool"
    if kind == "multi":
        most = MAX_MULTIVECTOR_VALUES // spec.output(kind).dimension
        return most if whole else min(most, spec.max_tokens)
    return spec.architecture.vocabulary if whole else spec.max_tokens
