"""Room for vectors is reserved for the worst case, also of texts that are embedded in windows."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ledger.ledger import Ledger
from producer.batching import cut_batches
from producer.corpus import open_corpus
from producer.credit import vector_bytes, vector_cost
from producer.submission import Submission
from registry.chunks import Chunk
from registry.codecs import Dense, Multi, Part, Sparse, pack_part
from registry.frames import pack_chunks
from registry.models import OutputKind
from registry.plan import make_plan
from registry.settings import Settings, load_settings
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder
from worker.half_precision import halved

MINI, BGE = "qdrant-minilm-onnx", "bge-m3"
CHUNKS = [Chunk(str(i), "word " * count) for i, count in enumerate((1, 500, 40_000))]


@pytest.mark.parametrize("transport", ["float32", "float16"])
@pytest.mark.parametrize("truncate", ["cut", "split-and-pool"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "multi"])
def test_a_part_fits_into_what_was_reserved(truncate: str, kind: OutputKind, transport: str) -> None:
    plan = make_plan(primary=BGE, outputs={BGE: (kind,)}, truncate=truncate, transport=transport, fake=True)
    names = [vector.name for vector in plan.vectors()]
    encoder = FakeEncoder(plan.served(BGE), "", load_settings())
    texts = [chunk.text for chunk in CHUNKS]
    part = encode(encoder, texts, "document", [kind], device_lock=threading.Lock())
    sent = halved(part) if transport == "float16" else part
    assert len(pack_part(sent)) <= vector_bytes(plan, names, CHUNKS)


@pytest.mark.parametrize("kinds", [("dense",), ("dense", "multi")])
def test_in_float16_half_is_reserved_and_half_is_forecast(kinds: Sequence[OutputKind]) -> None:
    """What a sparse weight takes stays: it may have to travel in float32."""
    whole, half = (
        make_plan(primary=BGE, outputs={BGE: kinds}, transport=transport, fake=True)
        for transport in ("float32", "float16")
    )
    names = [vector.name for vector in whole.vectors()]
    # Beside the values: the part's own bytes, and each text's token counts and offset.
    beside = 4096 + len(CHUNKS) * (8 + 8 * ("multi" in kinds))
    assert (vector_bytes(whole, names, CHUNKS) - beside) == 2 * (vector_bytes(half, names, CHUNKS) - beside)


def test_an_adopted_job_reserves_for_the_format_it_was_begun_with(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "a text"}))
    corpus = open_corpus([path], root=None, settings=settings)
    begun, again = (make_plan(primary=BGE, transport=t, fake=True) for t in ("float32", "float16"))
    job, _ = ledger.jobs.open("c", begun, corpus.sources)
    fleet = SimpleNamespace(settings=settings, ledger=ledger, doorbell=SimpleNamespace(ring=lambda *_: True))
    submission = Submission(fleet, corpus, "c", again)  # type: ignore[arg-type]
    assert submission._open().id == job.id
    submission._limit = 1 << 30
    submission._stage(job.id, "upsert", (BGE,), CHUNKS[:1])
    reserved = len(pack_chunks(CHUNKS[:1])) + vector_bytes(begun, [BGE], CHUNKS[:1])
    assert ledger.reserved() == reserved


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
