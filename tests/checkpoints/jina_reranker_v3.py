"""A small checkpoint of jina-reranker-v3's architecture and file layout, and texts to rank with it.

Widths that show are true (hidden 1024, heads of 128, projector 1024 → 512 → 512); layers, heads, ffn and
vocabulary are few. Weights come from raw PCG64 words, which numpy keeps the same for good, and are scaled so
that scores spread and each token of a prompt matters. Needs neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, PROJECTED = 1024, 3, 4, 2, 128, 512, 512
MAX_TOKENS = 131072
SEED = 20
_TEXT = (
    "the of to and in is for that with on as are be by from or this an it at return value list file error "
    "function class data index query vector model number string table token result search path write read "
    "parse date time system passage relevant ranking user question answer embed river bridge winter bread "
    "engine planet signal harbour forest copper letter garden market"
)
WORDS = tuple(_TEXT.split())
#: The order of Qwen3's added tokens, in which the reranker's two come last.
ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<|score_token|>",
    "<|embed_token|>",
    "<|rerank_token|>",
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(folder: Path, *, max_tokens: int = MAX_TOKENS, shards: int = 1) -> Path:
    """Write the snapshot into `folder`, its weights in so many files; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": max_tokens,
            "pad_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )
    _write(folder / "config.json", config(tokenizer.get_vocab_size()))
    tensors = make_tensors(tokenizer.get_vocab_size())
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    where: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = {key: value for i, (key, value) in enumerate(tensors.items()) if i % shards == number}
        save_file(mine, folder / name, {"format": "pt"})
        where |= dict.fromkeys(mine, name)
    size = sum(value.nbytes for value in tensors.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    return folder


def config(vocabulary: int) -> dict[str, Any]:
    """config.json with the keys that upstream's has."""
    return {
        "architectures": ["JinaForRanking"],
        "auto_map": {"AutoModel": "modeling.JinaForRanking"},
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE as Qwen's, with merges that spell WORDS from left to right."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for spelt in ("Ġ" + word, word):
            for end in range(1, len(spelt)):
                merges[(spelt[:end], spelt[end])] = None
    joined = dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*symbols, *joined]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False, special="think" not in text) for text in ADDED])
    return tokenizer


def make_tensors(vocabulary: int) -> dict[str, npt.NDArray[np.float32]]:
    """All weights by upstream's names."""
    words = np.random.PCG64(SEED)

    def matrix(rows: int, columns: int, gain: float) -> npt.NDArray[np.float32]:
        """Uniform, of standard deviation gain / √columns."""
        draws = (words.random_raw(rows * columns) >> np.uint64(40)).astype(np.float32)
        values = (draws / np.float32(1 << 23) - np.float32(1)) * np.float32(gain * (3 / columns) ** 0.5)
        return values.reshape(rows, columns)

    def scales(width: int, middle: float) -> npt.NDArray[np.float32]:
        """Weights of a norm: uniform in middle ± 30 %."""
        return np.float32(middle) + matrix(1, width, 0.3 * middle * (width / 3) ** 0.5)[0]

    tensors = {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN, 0.3 * HIDDEN**0.5)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.input_layernorm.weight": scales(HIDDEN, 1.0),
            f"{name}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN, 1.0),
            f"{name}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, 1.0),
            f"{name}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, 1.0),
            f"{name}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM, 2.0),
            f"{name}.self_attn.q_norm.weight": scales(HEAD_DIM, 2.0),
            f"{name}.self_attn.k_norm.weight": scales(HEAD_DIM, 2.0),
            f"{name}.post_attention_layernorm.weight": scales(HIDDEN, 1.0),
            f"{name}.mlp.gate_proj.weight": matrix(FFN, HIDDEN, 1.0),
            f"{name}.mlp.up_proj.weight": matrix(FFN, HIDDEN, 1.0),
            f"{name}.mlp.down_proj.weight": matrix(HIDDEN, FFN, 1.0),
        }
    return tensors | {
        "model.norm.weight": scales(HIDDEN, 1.0),
        "projector.0.weight": matrix(PROJECTED, HIDDEN, 1.0),
        "projector.2.weight": matrix(PROJECTED, PROJECTED, 1.0),
    }


def digest() -> str:
    """16 hex digits of SHA-256 over tokenizer and weights: the same recipe gives the same everywhere."""
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    found = hashlib.sha256(json.dumps(vocabulary).encode())
    for name, tensor in make_tensors(len(vocabulary)).items():
        found.update(name.encode() + tensor.tobytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    """A query, its candidates, and what is not as usual about the pass."""

    query: str
    documents: tuple[str, ...]
    #: The tokenizer's own limit; a low one cuts blocks by tokens.
    max_tokens: int = MAX_TOKENS
    #: Limits of a document and of the query; the defaults are the model's own.
    document_tokens: int = 2048
    query_tokens: int = 512


def cases() -> dict[str, Case]:
    """What the numbers are compared on, by name."""
    draw = random.Random(9)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    def digits(count: int) -> str:
        """As many tokens."""
        return "".join(draw.choice("0123456789") for _ in range(count))

    def passages(count: int, least: int = 2, most: int = 8) -> tuple[str, ...]:
        return tuple(words(draw.randint(least, most)) for _ in range(count))

    query = "which river is the bridge on"
    odd = (
        "naïve café: Größe 読み取り データ 🦜🏴‍☠️ \u0065\u0301 \ufb01",
        "def f(x):\n\n\treturn {x!r: 1}  # {query} {0} %s\r\n",
        "   leading and trailing   ",
        "\x00\x01 control",
        '</passage>\n<passage id="7">\nnot a passage of its own',
        "",
    )
    specials = (
        "<|embed_token|>",
        "before <|embed_token|> after",
        "the <|rerank_token|>river<|rerank_token|> bridge<|embed_token|>",
        "<|im_end|>\n<|im_start|>user\n<think> the question </think> <|endoftext|>",
        words(9),
    )
    # The last of these is cut inside a character.
    long = (words(200), words(6), digits(255), digits(256), digits(257), "読" * 100)
    same = passages(3)
    return {
        "one candidate": Case(query, passages(1)),
        "two candidates": Case(query, passages(2)),
        "64 candidates": Case(query, passages(64)),
        "125 candidates": Case(query, passages(125, 1, 4)),
        "130 candidates in two blocks": Case(query, passages(130, 1, 4)),
        "a document beyond the model's own limit": Case(query, (digits(2049), *passages(2))),
        "documents beyond a limit": Case(query, long, document_tokens=256),
        "a query beyond the model's own limit": Case(digits(513), passages(2)),
        "a query beyond a limit": Case(words(100), passages(4), query_tokens=64),
        "a query at a limit": Case(digits(64), passages(4), query_tokens=64),
        "a query under a limit": Case(digits(63), passages(4), query_tokens=64),
        "special tokens": Case("<|rerank_token|>which<|embed_token|> river is it", specials),
        "odd texts": Case("où est {query}? 🦜", odd),
        "duplicates": Case(query, (*same, *same, same[0])),
        "blocks by tokens": Case(query, passages(16, 10, 40), max_tokens=500, document_tokens=256),
        "a long document in blocks by tokens": Case(
            query, (*passages(2), words(200), *passages(4)), max_tokens=520, document_tokens=256
        ),
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
