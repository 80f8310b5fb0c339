"""Attention over texts that stand one after the other in one row, without padding between them.

transformers' models hand their queries, keys and values to a function by its name, and what else they are
called with, too: so where each text begins travels beside them, under transformers' own names for it.
On a GPU this is torch's own variable-length FlashAttention-2. Elsewhere texts go through torch's fused
attention one at a time, which is as right, and fast where there are few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from registry.models import Architecture
from worker.encoders.tokens import Ids, Packed, Padded

#: Names of attention functions: transformers' own for padded texts, and the two for packed ones. Behind a
#: name with "flash" in it transformers would look for a library.
PADDED = "sdpa"
VARLEN = "varlen"
EACH = "text-by-text"
#: What the kernel takes. It is built for Ampere and newer.
_FORMATS = (torch.float16, torch.bfloat16)
_CAPABILITY = (8, 0)
#: Texts of a trial: one token, less than a block of the kernel, a block, more than one. Tokens.
_LENGTHS = (1, 5, 128, 1, 190)
#: How far a trial's results, whose values are around 1, may lie from those in float32: a few times what the
#: format rounds the largest of them by. What sees a wrong token is off by as much as the values themselves.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def attention_for(
    asked: Literal["auto", "padded", "unpadded"], kind: str, capability: tuple[int, int], dtype: torch.dtype
) -> str:
    """The attention function for a device of that kind and compute capability."""
    kernel = kind == "cuda" and capability >= _CAPABILITY and dtype in _FORMATS
    if asked == "padded" or (asked == "auto" and not kernel):
        return PADDED
    return VARLEN if kernel else EACH


def model_inputs(tokens: Packed, positions: Ids, device: str) -> dict[str, Any]:
    """What a model of transformers takes for packed texts, the attention function's own included."""
    starts = torch.from_numpy(tokens.starts).to(device)
    return {
        "input_ids": torch.from_numpy(tokens.ids).to(device),
        "position_ids": torch.from_numpy(positions[None]).to(device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": tokens.longest,
        "max_length_k": tokens.longest,
    }


def useful(states: torch.Tensor, tokens: Padded | Packed) -> torch.Tensor:
    """A model's states `[b, t, h]` of the tokens that are no padding, as `flat_ids` has them: `[n, h]`."""
    flat = states.flatten(0, 1)
    if isinstance(tokens, Packed):
        return flat
    return flat[torch.from_numpy(np.flatnonzero(tokens.mask)).to(states.device)]


def problem_of(attention: str, sizes: Architecture, *, device: str, dtype: torch.dtype) -> str:
    """What is wrong with an attention function on a device, tried with random values in a model's sizes;
    nothing if it gives what plain arithmetic in float32 does. Raises what the function raises."""
    width = sizes.head_dim or sizes.hidden // sizes.heads
    drawn = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *_LENGTHS]).cumsum(0, dtype=torch.int32)
    query, key, value = (
        torch.randn(1, heads, int(starts[-1]), width, generator=drawn).to(dtype)
        for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    )
    for causal in (False, True):
        found, _ = _FUNCTIONS[attention](
            SimpleNamespace(is_causal=causal),
            query.to(device),
            key.to(device),
            value.to(device),
            None,
            scaling=width**-0.5,
            cu_seq_lens_q=starts.to(device),
            max_length_q=max(_LENGTHS),
        )
        off = float((found.float().cpu() - _plain(query, key, value, starts, causal=causal)).abs().max())
        # Written so that NaN is a problem.
        if not off <= _TOLERANCE[dtype]:
            return f"its results are off by up to {off:.3g}"
    return ""


def _varlen(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """See `AttentionInterface`: `[1, h, t, d]` each, to `[1, t, h, d]`."""
    _check(attention_mask, sliding_window)
    states: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0) if module.is_causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
        # A text's sums are then taken in the same order whatever stands beside it.
        num_splits=1,
    )
    return states[None], None


def _each(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As `_varlen`."""
    _check(attention_mask, sliding_window)
    states = [
        scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            is_causal=module.is_causal,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for begin, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(states, dim=2).transpose(1, 2), None


def _check(attention_mask: torch.Tensor | None, sliding_window: int | None) -> None:
    if attention_mask is not None or sliding_window is not None:
        raise ValueError(
            "packed texts have neither a mask nor a sliding window; set V5_ATTENTION=padded for this model"
        )


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, *, causal: bool
) -> torch.Tensor:
    """Attention as it is defined, text by text in float32: `[1, t, h, d]`."""
    shared = query.shape[1] // key.shape[1]
    query, key, value = query.float(), *(e.float().repeat_interleave(shared, dim=1) for e in (key, value))
    states = []
    for begin, end in pairwise(starts.tolist()):
        q, k, v = (each[:, :, begin:end] for each in (query, key, value))
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if causal:
            scores += torch.full(scores.shape[2:], -torch.inf).triu(1)
        states.append(scores.softmax(-1) @ v)
    return torch.cat(states, dim=2).transpose(1, 2)


_FUNCTIONS: dict[str, Callable[..., Any]] = {VARLEN: _varlen, EACH: _each}
for _name, _function in _FUNCTIONS.items():
    AttentionInterface.register(_name, _function)
