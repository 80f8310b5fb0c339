"""The registry's names and facts."""

from __future__ import annotations

import pytest

from registry.errors import UnknownModel
from registry.models import DEFAULT_ENSEMBLE, EMBEDDERS, MODELS, REMOVED, RERANKERS, embedder, model


def test_the_v5_models_are_exactly_these() -> None:
    facts = {
        name: (s.hub_id, s.role, s.dimension, s.max_tokens, s.licence, s.parameters)
        for name, s in MODELS.items()
    }
    assert facts == {
        "jina-code-embeddings-1.5b": (
            "jinaai/jina-code-embeddings-1.5b", "PRIMARY", 1536, 32768, "CC-BY-NC-4.0", 1_543_714_304
        ),
        "bge-m3": ("BAAI/bge-m3", "SECONDARY", 1024, 8192, "MIT", 567_754_752),
        "jina-embeddings-v4": (
            "jinaai/jina-embeddings-v4", "TERTIARY", 2048, 32768, "Qwen Research License", 3_934_695_552
        ),
        "qdrant-minilm-onnx": (
            "Qdrant/all-MiniLM-L6-v2-onnx", "QUATERNARY", 384, 256, "Apache-2.0", 22_713_216
        ),
        "all-miniLM-l6": (
            "sentence-transformers/all-MiniLM-L6-v2", "ALTERNATIVE", 384, 256, "Apache-2.0", 22_713_216
        ),
        "jina-reranker-v3": (
            "jinaai/jina-reranker-v3", "QUATERNARY", 512, 131072, "CC-BY-NC-4.0", 596_836_352
        ),
    }  # fmt: skip
    assert len(EMBEDDERS) == 5
    assert RERANKERS == ("jina-reranker-v3",)
    assert DEFAULT_ENSEMBLE == ("jina-code-embeddings-1.5b", "bge-m3")


@pytest.mark.parametrize(("old", "new"), REMOVED.items())
def test_a_removed_model_is_refused_and_its_successor_named(old: str, new: str) -> None:
    with pytest.raises(UnknownModel, match=f"{old}.*removed in V5; use '{new}'"):
        model(old)
    assert new in MODELS


def test_an_unknown_model_gets_a_hint() -> None:
    with pytest.raises(UnknownModel, match="did you mean 'all-miniLM-l6'"):
        model("all-minilm-l6")
    with pytest.raises(UnknownModel, match="the V5 models: "):
        model("zzz")


def test_a_reranker_embeds_nothing() -> None:
    with pytest.raises(UnknownModel, match="reranker"):
        embedder("jina-reranker-v3")


def test_prompts_keep_their_newline_and_cover_both_sides() -> None:
    prompts = MODELS["jina-code-embeddings-1.5b"].prompts
    assert set(prompts) == {"nl2code", "qa", "code2code", "code2nl", "code2completion"}
    assert all(p.query.endswith(":\n") and p.document.endswith(":\n") for p in prompts.values())
    assert MODELS["jina-embeddings-v4"].prompts["text-matching"].document == "Query: "


def test_matryoshka_ends_in_the_full_width() -> None:
    for spec in MODELS.values():
        assert not spec.matryoshka or spec.matryoshka[-1] == spec.dimension
    assert [name for name, s in MODELS.items() if s.matryoshka] == [
        "jina-code-embeddings-1.5b",
        "jina-embeddings-v4",
    ]
