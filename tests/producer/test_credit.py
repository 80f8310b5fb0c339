"""Room for vectors is reserved for the worst case, also of texts that are embedded in windows."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from producer.batching import cut_batches
from producer.credit import vector_bytes, vector_cost
from registry.chunks import Chunk
from registry.codecs import Dense, Multi, Part, Sparse, pack_part
from registry.models import OutputKind
from registry.plan import make_plan
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder

MINI, BGE = "qdrant-minilm-onnx", "bge-m3"
CHUNKS = [Chunk(str(i), "word " * count) for i, count in enumerate((1, 500, 40_000))]


@pytest.mark.parametrize("truncate", ["cut", "split-and-pool"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "multi"])
def test_a_part_fits_into_what_was_reserved(truncate: str, kind: OutputKind) -> None:
    plan = make_plan(primary=BGE, outputs={BGE: (kind,)}, truncate=truncate, fake=True)
    names = [vector.name for vector in plan.vectors()]
    encoder = FakeEncoder(plan.served(BGE), "", load_settings())
    texts = [chunk.text for chunk in CHUNKS]
    part = encode(encoder, texts, "document", [kind], device_lock=threading.Lock())
    assert len(pack_part(part)) <= vector_bytes(plan, names, CHUNKS)


def test_windows_may_take_more_than_the_models_limit_and_rows_never_more_than_the_store() -> None:
    def reserved(truncate: str, kind: OutputKind) -> int:
        plan = make_plan(primary=BGE, outputs={BGE: (kind,)}, truncate=truncate)
        return vector_bytes(plan, [vector.name for vector in plan.vectors()], CHUNKS[2:])

    # Beside the entries: the part's own bytes, a text's token counts, and where its entries begin.
    beside = 4096 + 8 + 8
    assert reserved("cut", "sparse") == beside + 8192 * 12
    assert reserved("split-and-pool", "sparse") == beside + (len(CHUNKS[2].text) + 8) * 12
    assert reserved("cut", "multi") == reserved("split-and-pool", "multi") == beside + 1024 * 1024 * 4


@pytest.mark.parametrize(("bytes_per_token", "most"), [(1, 1.05), (4, 4.1)])
def test_rows_are_reserved_for_a_token_per_byte(bytes_per_token: int, most: float) -> None:
    """No more than that where a text has as many; where it has fewer, as much more as it has fewer."""
    texts, size = 16, 512
    plan = make_plan(primary=BGE, outputs={BGE: ("dense", "sparse", "multi")}, fake=True)
    tokens = np.full(texts, size // bytes_per_token + 2)
    entries, offsets = int(tokens.sum()), np.concatenate([[0], np.cumsum(tokens)])
    part = Part(
        {
            "dense": Dense(np.zeros((texts, 1024), np.float32)),
            "sparse": Sparse(np.zeros(entries, np.int64), np.zeros(entries, np.float32), offsets),
            "multi": Multi(np.zeros((entries, 1024), np.float32), offsets),
        },
        tokens,
        tokens,
    )
    chunks = [Chunk(str(i), "x" * size) for i in range(texts)]
    reserved = vector_bytes(plan, [vector.name for vector in plan.vectors()], chunks)
    assert 1.0 <= reserved / len(pack_part(part)) <= most


def test_a_batch_of_many_texts_has_room_for_what_is_said_of_each() -> None:
    plan = make_plan(primary=MINI, fake=True)
    tokens = np.full(8192, 9)
    part = Part({"dense": Dense(np.zeros((8192, 384), np.float32))}, tokens, tokens)
    reserved = vector_bytes(plan, list(plan.models), [Chunk(str(i), "x") for i in range(8192)])
    assert 1.0 <= reserved / len(pack_part(part)) <= 1.001


def test_batches_are_cut_by_what_their_vectors_reserve() -> None:
    """A text of 500 bytes takes 2 MB of rows, so one budget's worth of text is far too much for one batch."""
    plan = make_plan(primary=BGE, outputs={BGE: ("dense", "multi")})
    names = [vector.name for vector in plan.vectors()]
    chunks = [Chunk(f"{i:02}", "x" * (500 if i else 5000)) for i in range(20)]
    cost = vector_cost(plan, names)
    batches = list(cut_batches(chunks, load_settings(), cost, 10 << 20))
    assert [len(batch) for batch in batches] == [5, 5, 5, 4, 1]
    assert all(vector_bytes(plan, names, batch) <= 4096 + (10 << 20) for batch in batches)
    # The longest goes alone even where it takes more than the share.
    assert len(list(cut_batches(chunks, load_settings(), cost, 1 << 20))) == 20
