"""A small jina-code-embeddings: its architecture, files and output width, with few layers and tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from tests.checkpoints.material import WORDS, Draw, write_json

HIDDEN = 1536
LAYERS = 2
HEADS = 12
KEY_HEADS = 2
HEAD = HIDDEN // HEADS
FFN = 256
#: Longest input in tokens, the prompt included; 32768 at the true size.
MAX_TOKENS = 600
#: Rows of the embeddings that no token has, as upstream has some.
SPARE = 7
END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|image_pad|>")
#: Known to the tokenizer as one token each, and not special.
ADDED = ("<tool_call>", "<|fim_prefix|>", "<|repo_name|>", "<|file_sep|>")
#: How Qwen splits a text before it merges bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def build(path: Path, seed: int = 21) -> Path:
    """Write the checkpoint into an empty directory; about 60 MB, the same bytes of weights everywhere."""
    tokenizer = make_tokenizer()
    vocabulary = tokenizer.get_vocab_size() + SPARE
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"eos_token": END, "pad_token": END}
    write_json(path / "special_tokens_map.json", named)
    write_json(
        path / "tokenizer_config.json",
        {
            **named,
            "add_prefix_space": False,
            "model_max_length": MAX_TOKENS,
            "padding_side": "left",
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )
    end = tokenizer.token_to_id(END)
    write_json(
        path / "config.json",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": end,
            "eos_token_id": end,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": FFN,
            "max_position_embeddings": MAX_TOKENS,
            "max_window_layers": LAYERS,
            "model_type": "qwen2",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KEY_HEADS,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": MAX_TOKENS,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "use_cache": False,
            "use_sliding_window": False,
            "vocab_size": vocabulary,
        },
    )
    kinds = ("Transformer", "Pooling")
    write_json(
        path / "modules.json",
        [
            {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
            for i, (folder, kind) in enumerate(zip(("", "1_Pooling"), kinds, strict=True))
        ],
    )
    write_json(path / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    write_json(
        path / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    save_file(_decoder(Draw(seed), vocabulary), path / "model.safetensors", {"format": "pt"})
    return path


def write_prompts(path: Path, prompts: dict[str, str]) -> None:
    """Add the prompts by their names, as sentence-transformers keeps them."""
    write_json(
        path / "config_sentence_transformers.json",
        {"default_prompt_name": None, "prompts": prompts, "similarity_fn_name": "cosine"},
    )


def _decoder(draw: Draw, vocabulary: int) -> dict[str, torch.Tensor]:
    """Tensors by the names they have upstream.

    Queries and keys are drawn wide: attention then picks few tokens, and texts differ.
    """

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(draw.uniform(rows, columns, deviation=gain * columns**-0.5))

    def vector(count: int, mean: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(draw.uniform(count, deviation=0.1, mean=mean))

    tensors = {"embed_tokens.weight": torch.from_numpy(draw.uniform(vocabulary, HIDDEN, deviation=1.0))}
    for i in range(LAYERS):
        layer = f"layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = vector(HIDDEN, 1.0)
        tensors[f"{layer}.post_attention_layernorm.weight"] = vector(HIDDEN, 1.0)
        widths = {"q": (HEADS * HEAD, 2.0), "k": (KEY_HEADS * HEAD, 2.0), "v": (KEY_HEADS * HEAD, 1.5)}
        for name, (rows, gain) in widths.items():
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = matrix(rows, HIDDEN, gain)
            tensors[f"{layer}.self_attn.{name}_proj.bias"] = vector(rows)
        tensors[f"{layer}.self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * HEAD, 1.5)
        tensors[f"{layer}.mlp.gate_proj.weight"] = matrix(FFN, HIDDEN)
        tensors[f"{layer}.mlp.up_proj.weight"] = matrix(FFN, HIDDEN)
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(HIDDEN, FFN)
    tensors["norm.weight"] = vector(HIDDEN, 1.0)
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def make_tokenizer() -> Tokenizer:
    """Qwen's byte-level BPE with few merges: each of WORDS is one token where a blank is before it."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in (*("Ġ" + word for word in WORDS), *WORDS):
        for end in range(1, len(word)):
            joined = word[: end + 1]
            if joined not in vocabulary:
                vocabulary[joined] = len(vocabulary)
                merges.append((word[:end], word[end]))
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return tokenizer
