"""A small checkpoint with the architecture, the files and the tensor names of jina-embeddings-v4.

True widths (2048, 128, heads of 128), two layers, a small feed-forward and vocabulary; three adapters whose
`lora_B` is not zero; stored in bfloat16. Any machine builds the same bytes. Scales are chosen so that
different texts, adapters and positions give clearly different vectors: in a checkpoint where everything
looks alike wrong code would pass.

`python -m tests.checkpoints.jina_v4 DIRECTORY` builds it there.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.checkpoints.material import Draw, write_json

HIDDEN, WIDTH, LAYERS, HEADS, KV_HEADS, FFN, VOCABULARY = 2048, 128, 2, 16, 2, 256, 768
#: Rank and alpha differ, so that the scaling (1.5) shows; upstream's are 32 and 32.
RANK, ALPHA = 8, 12
TASKS = ("retrieval", "text-matching", "code")
_SPECIALS = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
"""
SPECIALS = tuple(_SPECIALS.split())
#: Qwen's additions that decoding does not drop.
_ADDED = """
<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
"""
_WORDS = """
def return class import self value index count table batch vector model token query passage search the of
house tree red run code water seven music river stone cloud paper light green north winter bread silver
engine garden window market forest copper bridge candle ocean violet hammer pepper signal thread mirror
basket ladder needle pocket rocket saddle tunnel velvet wagon yellow zebra anchor button cotton dragon
"""
#: Each is one token after a blank.
WORDS = tuple(_WORDS.split())
#: How Qwen splits text before byte-level BPE.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(directory: Path) -> Path:
    """Write the snapshot into `directory`; takes about 2 s and 60 MB."""
    (directory / "adapters").mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", _tokenizer_config())
    write_json(directory / "config.json", config(tokenizer))
    write_json(directory / "preprocessor_config.json", _preprocessor_config())
    write_json(directory / "adapters" / "adapter_config.json", adapter_config())
    draw = Draw(4)
    tensors = dict(_tensors(draw))
    # As upstream's: embeddings and the first layers, then the rest.
    first = {k: v for k, v in tensors.items() if "embed_tokens" in k or "visual" in k or "layers.0." in k}
    shards = {
        "model-00001-of-00002.safetensors": first,
        "model-00002-of-00002.safetensors": {k: v for k, v in tensors.items() if k not in first},
    }
    for name, shard in shards.items():
        save_file(shard, directory / name, metadata={"format": "pt"})
    write_json(
        directory / "model.safetensors.index.json",
        {
            "metadata": {"total_size": sum(t.numel() * 2 for t in tensors.values())},
            "weight_map": {key: name for name, shard in shards.items() for key in shard},
        },
    )
    adapters = directory / "adapters" / "adapter_model.safetensors"
    save_file(dict(_adapters(draw)), adapters, metadata={"format": "pt"})
    return directory


def digest(directory: Path) -> str:
    """SHA-256 over all tensors of a built checkpoint, whatever order their files have."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.rglob("*.safetensors")):
        tensors |= load_file(file)
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(name.encode())
        made.update(tensors[name].view(torch.int16).numpy().tobytes())
    return made.hexdigest()


def words(seed: int, count: int) -> str:
    """`count` words of a vocabulary of the text's own, so that two texts share little; one token each."""
    drawn = np.random.PCG64([17, seed]).random_raw(len(WORDS) + count)
    own = np.argsort(drawn[: len(WORDS)])[:24]
    return " ".join(WORDS[own[i]] for i in drawn[len(WORDS) :] % len(own))


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's splitting and special tokens; its merges spell the words, left to right."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    merges: dict[tuple[str, str], None] = {}
    for word in ("Query", "Passage", *(f"Ġ{word}" for word in WORDS)):
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _ADDED.split()])
    return tokenizer


def config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json in upstream's shape: the text sizes nested, and Qwen's token ids at the top."""
    text = {
        "model_type": "qwen2_5_vl_text",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "torch_dtype": "bfloat16",
    }
    return {
        "architectures": ["JinaEmbeddingsV4Model"],
        # Names upstream's code, which nothing here may run; there is none in the snapshot.
        "auto_map": {"AutoModel": "modeling_jina_embeddings_v4.JinaEmbeddingsV4Model"},
        "model_type": "qwen2_5_vl",
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "single_vector_pool_strategy": "mean",
        "multi_vector_projector_dim": WIDTH,
        "matryoshka_dims": [128, 256, 512, 1024, 2048],
        "task_names": list(TASKS),
        "truncate_dim": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [0],
            "torch_dtype": "bfloat16",
        },
    }


def adapter_config() -> dict[str, Any]:
    """adapters/adapter_config.json; one file of targets and sizes for all three adapters."""
    return {
        "alpha_pattern": {},
        "bias": "none",
        "exclude_modules": ".*visual.*",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_alpha": ALPHA,
        "lora_bias": False,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "target_modules": "(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
        "|.*(single_vector_projector|multi_vector_projector).*$)",
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }


def _tensors(draw: Draw) -> Iterator[tuple[str, torch.Tensor]]:
    """The shards' tensors by upstream's names; there is no lm_head."""
    head = HIDDEN // HEADS
    yield "model.embed_tokens.weight", _weight(draw, 1.0, VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", _norm(draw, HIDDEN)
        yield f"{at}.post_attention_layernorm.weight", _norm(draw, HIDDEN)
        # Large queries and keys make attention choose, and so depend on positions.
        # A large bias of the values would make all texts alike.
        for name, rows, gain, bias in (
            ("q", HEADS * head, 1.6, 0.5),
            ("k", KV_HEADS * head, 1.6, 0.5),
            ("v", KV_HEADS * head, 1.0, 0.05),
        ):
            yield f"{at}.self_attn.{name}_proj.weight", _weight(draw, gain / HIDDEN**0.5, rows, HIDDEN)
            yield f"{at}.self_attn.{name}_proj.bias", _weight(draw, bias, rows)
        yield f"{at}.self_attn.o_proj.weight", _weight(draw, 1.5 / HIDDEN**0.5, HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            yield f"{at}.mlp.{name}_proj.weight", _weight(draw, HIDDEN**-0.5, FFN, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", _weight(draw, 1.5 / FFN**0.5, HIDDEN, FFN)
    yield "model.norm.weight", _norm(draw, HIDDEN)
    yield "multi_vector_projector.weight", _weight(draw, HIDDEN**-0.5, WIDTH, HIDDEN)
    yield "multi_vector_projector.bias", _weight(draw, 0.2, WIDTH)
    yield from _vision(draw)


def _vision(draw: Draw) -> Iterator[tuple[str, torch.Tensor]]:
    """A vision tower as small as the architecture allows; upstream's loader reads it, ours must not."""
    width, ffn = 32, 48
    yield "visual.patch_embed.proj.weight", _weight(draw, 0.02, width, 3, 2, 14, 14)
    at = "visual.blocks.0"
    yield f"{at}.norm1.weight", _norm(draw, width)
    yield f"{at}.norm2.weight", _norm(draw, width)
    shapes = {
        f"{at}.attn.qkv": (3 * width, width),
        f"{at}.attn.proj": (width, width),
        f"{at}.mlp.gate_proj": (ffn, width),
        f"{at}.mlp.up_proj": (ffn, width),
        f"{at}.mlp.down_proj": (width, ffn),
        "visual.merger.mlp.0": (4 * width, 4 * width),
        "visual.merger.mlp.2": (HIDDEN, 4 * width),
    }
    for name, (rows, columns) in shapes.items():
        yield f"{name}.weight", _weight(draw, 0.1, rows, columns)
        yield f"{name}.bias", _weight(draw, 0.1, rows)
    yield "visual.merger.ln_q.weight", _norm(draw, width)


def _adapters(draw: Draw) -> Iterator[tuple[str, torch.Tensor]]:
    """Two factors per adapted Linear and task, under the names that peft saves."""
    head = HIDDEN // HEADS
    shapes = {"base_model.model.multi_vector_projector": (WIDTH, HIDDEN)}
    for layer in range(LAYERS):
        at = f"base_model.model.model.language_model.layers.{layer}"
        shapes[f"{at}.self_attn.q_proj"] = (HEADS * head, HIDDEN)
        shapes[f"{at}.self_attn.k_proj"] = (KV_HEADS * head, HIDDEN)
        shapes[f"{at}.self_attn.v_proj"] = (KV_HEADS * head, HIDDEN)
        shapes[f"{at}.self_attn.o_proj"] = (HIDDEN, HIDDEN)
        shapes[f"{at}.mlp.gate_proj"] = (FFN, HIDDEN)
        shapes[f"{at}.mlp.up_proj"] = (FFN, HIDDEN)
        shapes[f"{at}.mlp.down_proj"] = (HIDDEN, FFN)
    for name, (rows, columns) in shapes.items():
        for task in TASKS:
            yield f"{name}.lora_A.{task}.weight", _weight(draw, columns**-0.5, RANK, columns)
            yield f"{name}.lora_B.{task}.weight", _weight(draw, 0.4 / RANK**0.5, rows, RANK)


def _weight(draw: Draw, deviation: float, *shape: int) -> torch.Tensor:
    return torch.from_numpy(draw.uniform(*shape, deviation=deviation)).to(torch.bfloat16)


def _norm(draw: Draw, width: int) -> torch.Tensor:
    return torch.from_numpy(draw.uniform(width, deviation=0.2, mean=1.0)).to(torch.bfloat16)


def _tokenizer_config() -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIALS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "processor_class": "JinaEmbeddingsV4Processor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _preprocessor_config() -> dict[str, Any]:
    """Only upstream's processor reads it, which cannot be made without a part for pictures."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "JinaEmbeddingsV4Processor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 3136,
        "max_pixels": 602112,
    }


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
