"""Room for vectors is reserved for the worst case, also of texts that are embedded in windows."""

from __future__ import annotations

import threading

import pytest

from producer.credit import vector_bytes
from registry.chunks import Chunk
from registry.codecs import pack_part
from registry.models import OutputKind
from registry.plan import make_plan
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder

BGE = "bge-m3"
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

    assert reserved("cut", "sparse") == 4096 + 8192 * 12
    assert reserved("split-and-pool", "sparse") == 4096 + (len(CHUNKS[2].text) + 8) * 12
    assert reserved("cut", "multi") == reserved("split-and-pool", "multi") == 4096 + 1024 * 1024 * 4
