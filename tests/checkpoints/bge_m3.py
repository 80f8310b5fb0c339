"""A small bge-m3: its architecture, its files and its output widths, with few layers and tokens, seeded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from tests.checkpoints.material import WORDS, Draw, characters, write_json

HIDDEN = 1024
LAYERS = 2
HEADS = 16
FFN = 256
#: Longest input in tokens, `<s>` and `</s>` included; 8192 at the true size.
MAX_TOKENS = 600
PADDING_ID = 1


def build(path: Path, seed: int = 20) -> Path:
    """Write the checkpoint into an empty directory; about 40 MB, the same bytes of weights everywhere."""
    tokenizer = _tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    named |= {"mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(path / "special_tokens_map.json", named)
    write_json(
        path / "tokenizer_config.json",
        {**named, "model_max_length": MAX_TOKENS, "tokenizer_class": "XLMRobertaTokenizer"},
    )
    write_json(
        path / "config.json",
        {
            "architectures": ["XLMRobertaModel"],
            "attention_probs_dropout_prob": 0.1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": MAX_TOKENS + PADDING_ID + 1,
            "model_type": "xlm-roberta",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "pad_token_id": PADDING_ID,
            "position_embedding_type": "absolute",
            "torch_dtype": "float32",
            "type_vocab_size": 1,
            "vocab_size": vocabulary,
        },
    )
    names = ("Transformer", "Pooling", "Normalize")
    folders = ("", "1_Pooling", "2_Normalize")
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    write_json(
        path / "modules.json",
        [
            {"idx": i, "name": str(i), "path": folder, "type": kind}
            for i, (folder, kind) in enumerate(zip(folders, kinds, strict=True))
        ],
    )
    write_json(
        path / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    draw = Draw(seed)
    torch.save(_encoder(draw, vocabulary), path / "pytorch_model.bin")
    torch.save(_linear(draw, HIDDEN, HIDDEN, deviation=HIDDEN**-0.5), path / "colbert_linear.pt")
    torch.save(_linear(draw, HIDDEN, 1, deviation=0.02), path / "sparse_linear.pt")
    return path


def _linear(draw: Draw, inputs: int, outputs: int, *, deviation: float) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.from_numpy(draw.uniform(outputs, inputs, deviation=deviation)),
        "bias": torch.from_numpy(draw.uniform(outputs, deviation=0.02)),
    }


def _norm(draw: Draw) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.from_numpy(draw.uniform(HIDDEN, deviation=0.1, mean=1.0)),
        "bias": torch.from_numpy(draw.uniform(HIDDEN, deviation=0.1)),
    }


def _encoder(draw: Draw, vocabulary: int) -> dict[str, torch.Tensor]:
    """Tensors by the names they have upstream, the pooler that no output uses among them.

    Queries and keys are drawn wide: attention then picks few tokens, and texts differ.
    """
    narrow = HIDDEN**-0.5
    parts: dict[str, dict[str, torch.Tensor]] = {
        "embeddings.word_embeddings": {
            "weight": torch.from_numpy(draw.uniform(vocabulary, HIDDEN, deviation=1.0))
        },
        "embeddings.position_embeddings": {
            "weight": torch.from_numpy(draw.uniform(MAX_TOKENS + PADDING_ID + 1, HIDDEN, deviation=0.5))
        },
        "embeddings.token_type_embeddings": {
            "weight": torch.from_numpy(draw.uniform(1, HIDDEN, deviation=0.1))
        },
        "embeddings.LayerNorm": _norm(draw),
    }
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key"):
            parts[f"{layer}.attention.self.{name}"] = _linear(draw, HIDDEN, HIDDEN, deviation=2.5 * narrow)
        parts[f"{layer}.attention.self.value"] = _linear(draw, HIDDEN, HIDDEN, deviation=2 * narrow)
        parts[f"{layer}.attention.output.dense"] = _linear(draw, HIDDEN, HIDDEN, deviation=2 * narrow)
        parts[f"{layer}.attention.output.LayerNorm"] = _norm(draw)
        parts[f"{layer}.intermediate.dense"] = _linear(draw, HIDDEN, FFN, deviation=narrow)
        parts[f"{layer}.output.dense"] = _linear(draw, FFN, HIDDEN, deviation=FFN**-0.5)
        parts[f"{layer}.output.LayerNorm"] = _norm(draw)
    parts["pooler.dense"] = _linear(draw, HIDDEN, HIDDEN, deviation=narrow)
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _tokenizer() -> Tokenizer:
    """SentencePiece's unigram as XLM-RoBERTa has it, over few pieces; what they cannot spell is `<unk>`."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -5.0 - i / 100) for i, word in enumerate(WORDS)]
    pieces += [(word[:3], -8.0 - i / 100) for i, word in enumerate(dict.fromkeys(w[:3] for w in WORDS))]
    pieces += [(character, -10.0 - i / 100) for i, character in enumerate(characters())]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ("<s>", "<pad>", "</s>", "<unk>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer
