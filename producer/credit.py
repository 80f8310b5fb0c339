"""How many bytes a batch's vectors will take in Redis, so that room for them is reserved before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from producer.draft import text_bytes
from registry.chunks import Chunk
from registry.models import MAX_MULTIVECTOR_VALUES, ModelSpec, OutputKind, embedder
from registry.plan import Plan

#: A batch's vectors reserve at most the budget divided by this, so that several batches are under way; a
#: chunk whose own vectors are more goes alone. Fewer at once leave workers idle, more of them are smaller.
BATCHES_AT_LEAST = 4
#: safetensors header, frame and reasons of one part. Bytes.
_PART_OVERHEAD = 4096
#: A text's tokens, seen and kept, as two int32. Bytes.
_COUNTS = 8
#: An int64 that says where a text's rows or weights begin. Bytes.
_OFFSET = 8
#: A sparse entry: an int64 id and a float32 weight. Bytes.
_SPARSE_ENTRY = 12


def vector_cost(plan: Plan, names: Sequence[str]) -> Callable[[int], int]:
    """An upper bound for the vectors `names` of one chunk, as a function of its text's bytes.

    A text has at most one token per UTF-8 byte, plus its special tokens and prompt; per-token outputs are
    reserved for that many. English or code has a token per three to five bytes, so these take that much less.
    """
    fixed = 0
    #: Tokens beside the text's own, the most there are, and bytes of each.
    growing: list[tuple[int, int, int]] = []
    for model in plan.models_for(list(names)):
        spec = embedder(model)
        fixed += _COUNTS
        for kind in plan.kinds(model):
            width = spec.output(kind).dimension
            if kind == "dense":
                fixed += width * plan.value_bytes
                continue
            fixed += _OFFSET
            prompt = len(plan.space(model, kind).prompt_document.encode())
            each = width * plan.value_bytes if kind == "multi" else _SPARSE_ENTRY
            growing.append((prompt + 8, _most_entries(plan, spec, kind), each))

    def cost(size: int) -> int:
        return fixed + sum(min(size + more, most) * each for more, most, each in growing)

    return cost


def vector_bytes(plan: Plan, names: Sequence[str], chunks: Sequence[Chunk]) -> int:
    """An upper bound for the parts of a batch that lacks the vectors `names`."""
    cost = vector_cost(plan, names)
    parts = len(plan.models_for(list(names)))
    return parts * _PART_OVERHEAD + sum(cost(text_bytes(chunk.text)) for chunk in chunks)


def _most_entries(plan: Plan, spec: ModelSpec, kind: OutputKind) -> int:
    """Rows or weights of one text's output, at most; a text in windows is not bound by the model's limit."""
    whole = plan.truncate == "split-and-pool"
    if kind == "multi":
        most = MAX_MULTIVECTOR_VALUES // spec.output(kind).dimension
        return most if whole else min(most, spec.max_tokens)
    return spec.architecture.vocabulary if whole else spec.max_tokens
