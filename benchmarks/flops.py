"""How much arithmetic a forward pass is."""

from __future__ import annotations

from registry.models import Architecture


def forward_flops(sizes: Architecture, tokens: int) -> float:
    """Floating-point operations of one text of `tokens` tokens through a transformer, padding left out.

    For each token 2 operations per weight of a matrix product, and 4·L·H·Q·T for attention over T tokens
    (products of queries with keys and of weights with values), as Chowdhery et al. count them (PaLM,
    arXiv:2204.02311, appendix B; theirs are three times these, as they count the backward pass). Where
    attention is causal a token sees only those before it, T+1 halves on average. Embeddings are looked up,
    norms, activations and softmax are no matrix products: none of them counts.

    A layer has the four products of attention, with fewer heads for keys and values where the model shares
    them, and a feed-forward part of two matrices, or three where it is gated (Qwen).
    """
    qwen = sizes.type.startswith("Qwen")
    head = sizes.head_dim or sizes.hidden // sizes.heads
    attention = 2 * sizes.hidden * head * (sizes.heads + sizes.kv_heads)
    feed_forward = (3 if qwen else 2) * sizes.hidden * sizes.ffn
    seen = (tokens + 1) / 2 if qwen else tokens
    scores = 4 * sizes.heads * head * seen
    return float(tokens * sizes.layers * (2 * (attention + feed_forward) + scores))
