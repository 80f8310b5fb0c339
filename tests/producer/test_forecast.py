"""A forecast: what is counted is what a submission does; what is estimated follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger.alive import Process
from ledger.rates import Rate, rated_as
from producer.batching import cut_batches, windows
from producer.corpus import Corpus, open_corpus
from producer.forecast import BYTES_PER_TOKEN, forecast, speeds
from registry.footprint import INDEXED_FROM, link_bytes
from registry.frames import pack_chunks
from registry.plan import make_plan

MINI, BGE = "qdrant-minilm-onnx", "bge-m3"


@pytest.fixture
def corpus(tmp_path: Path, settings) -> Corpus:
    """700 texts of 40 to 440 bytes, one of 10,000 bytes, one empty one."""
    (tmp_path / "p").mkdir()
    rows = [{"text": f"{i:04}" + "word" * (9 + i % 100), "id": f"c{i}"} for i in range(700)]
    rows += [{"text": "x" * 10_000}, {"text": ""}]
    (tmp_path / "p/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p/.hidden").write_text("")
    return open_corpus([tmp_path / "p"], root=None, settings=settings)


def test_it_counts_what_a_submission_would_cut(corpus, settings):
    plan = make_plan(primary=MINI)
    seen = []
    settings = settings.model_copy(update={"window_chunks": 256, "batch_chunks": 64})
    found = forecast(corpus, plan, settings, speeds(plan, {}, []), lambda f: seen.append(f.chunks))
    batches = [b for w in windows(corpus.items(), settings) for b in cut_batches(w.chunks, settings)]
    assert found.batches == len(batches) == 11
    assert found.packed_bytes == sum(len(pack_chunks(batch)) for batch in batches)
    assert found.text_bytes == sum(len(chunk.text) for batch in batches for chunk in batch)
    assert (found.files, found.chunks) == (1, 701)
    assert found.rejected == {"empty text": 1}
    assert found.left_out == {"hidden": 1}
    assert len(seen) == 3
    assert seen[-1] == 701


def test_tokens_end_at_a_models_limit(corpus, settings):
    plan = make_plan(primary=MINI, companions=[BGE])
    found = forecast(corpus, plan, settings, speeds(plan, {}, []))
    lengths = [4 * (10 + i % 100) for i in range(700)] + [10_000]
    for name, most, each in (
        (MINI, 256, BYTES_PER_TOKEN["BertModel"]),
        (BGE, 8192, BYTES_PER_TOKEN["XLMRobertaModel"]),
    ):
        assert found.models[name].tokens == round(sum(min(most, length / each) for length in lengths))


def test_a_copy_is_stored_and_not_embedded(tmp_path, settings):
    rows = [{"text": f"{i % 8} " + "word" * 20, "id": f"c{i}"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(primary=BGE, outputs={BGE: ["dense", "sparse", "multi"]})
    # A window of ten: originals of one, copies in the next.
    settings = settings.model_copy(update={"window_chunks": 10})
    once = open_corpus([tmp_path / "a.jsonl"], root=None, settings=settings)
    found = forecast(once, plan, settings, speeds(plan, {}, []))
    each = 82 / BYTES_PER_TOKEN["XLMRobertaModel"]
    model = found.models[BGE]
    assert (found.chunks, found.copies) == (20, 12)
    # Eight originals, their two first copies, the ten others.
    assert found.batches == 3
    assert (model.tokens, model.stored_tokens) == (round(8 * each), round(20 * each))
    assert found.vector_bytes == 8 * 1024 * 4 + model.tokens * (12 + 1024 * 4)
    assert found.vectors[BGE].raw == 20 * 1024 * 4
    assert found.vectors["bge-m3-colbert"].raw == model.stored_tokens * 1024 * 2
    assert found.as_json(1)["copies"] == 12


def test_redis_holds_text_and_vectors_and_no_more_at_once_than_the_budget(corpus, settings):
    plan = make_plan(primary=BGE, outputs={BGE: ["dense", "sparse", "multi"]})
    settings = settings.model_copy(update={"batch_chunks": 16})
    found = forecast(corpus, plan, settings, speeds(plan, {}, []))
    tokens = found.models[BGE].tokens
    assert found.vector_bytes == 701 * 1024 * 4 + tokens * 12 + tokens * 1024 * 4
    assert found.redis_bytes == found.packed_bytes + found.vector_bytes
    assert found.in_flight(1 << 40) == found.redis_bytes
    assert found.in_flight(60 << 20) == 60 << 20
    # One batch is always allowed.
    assert found.in_flight(1) == found.largest_batch
    assert 1 << 20 < found.largest_batch < 60 << 20


def test_every_named_vector_has_its_bytes(corpus, settings):
    plan = make_plan(
        primary=BGE,
        companions=[MINI],
        outputs={BGE: ["dense", "sparse", "multi"]},
        ensemble={"members": [BGE, MINI], "method": "concat"},
        index={"dense": {"quantization": "int8", "m": 32}},
    )
    found = forecast(corpus, plan, settings, speeds(plan, {}, []))
    assert list(found.vectors) == [vector.name for vector in plan.vectors()]
    tokens = found.models[BGE].tokens
    assert tokens * 1024 * 4 > INDEXED_FROM
    assert found.vectors[BGE].raw == 701 * 1024 * 4
    assert found.vectors[BGE].quantized == 701 * (1024 + 4)
    assert found.vectors[BGE].links == link_bytes(701, 32)
    assert found.vectors["ensemble"].raw == 701 * 768 * 4
    assert found.vectors["bge-m3-colbert"].raw == tokens * 1024 * 2
    assert found.vectors["bge-m3-sparse"].raw >= tokens * 8
    assert found.qdrant_bytes == found.stored_payload_bytes + sum(v.total for v in found.vectors.values())
    assert found.stored_payload_bytes > found.text_bytes


def test_a_small_collection_has_no_graph_yet(corpus, settings):
    plan = make_plan(primary=MINI, index={"dense": {"quantization": "int8"}})
    found = forecast(corpus, plan, settings, speeds(plan, {}, []))
    assert (found.vectors[MINI].links, found.vectors[MINI].quantized) == (0, 0)


def worker(model: str, device: str, number: int = 0) -> Process:
    return Process(kind="worker", name=f"w{number}", host="h", pid=number, model=model, device=device)


def test_the_slowest_model_says_how_long_it_takes(corpus, settings):
    plan = make_plan(primary=MINI, companions=[BGE])
    rates = {(MINI, "cpu"): Rate(1000.0, 10.0, 4.0, 1.0), (BGE, "cuda:0"): Rate(50.0, 1.0, 4.0, 1.0)}
    living = [worker(MINI, "cpu"), worker(BGE, "cuda:0", 1), worker(BGE, "cuda:0", 2)]
    found = forecast(corpus, plan, settings, speeds(plan, rates, living))
    tokens = {name: model.tokens for name, model in found.models.items()}
    assert found.models[MINI].hours == pytest.approx(tokens[MINI] / 1000 / 3600)
    assert found.models[BGE].hours == pytest.approx(tokens[BGE] / 100 / 3600)
    assert found.hours == found.models[BGE].hours
    assert tokens[BGE] == round(sum(4 * (10 + i % 100) / 4 for i in range(700)) + 2500)


def test_a_models_speed_is_the_sum_of_its_living_workers():
    plan = make_plan(primary=BGE)
    rates = {
        (BGE, "cpu"): Rate(50.0, 1.0, 3.0, at=5.0),
        (BGE, "cuda:0"): Rate(1000.0, 9.0, 3.5, at=9.0),
        (MINI, "cpu"): Rate(7.0, 1.0, 1.0, at=99.0),
    }
    living = [worker(BGE, "cpu"), worker(BGE, "cuda:0", 1), worker(BGE, "cuda:0", 2), worker(MINI, "cpu", 3)]
    speed = speeds(plan, rates, living)[BGE]
    assert (speed.tokens_per_second, speed.workers) == (2050.0, 3)
    assert (speed.bytes_per_token, speed.measured) == (3.5, True)


def test_without_a_living_worker_the_newest_measurement_stands_for_one():
    plan = make_plan(primary=BGE)
    rates = {(BGE, "cpu"): Rate(50.0, 1.0, 3.0, at=9.0), (BGE, "cuda:0"): Rate(1000.0, 9.0, 3.5, at=5.0)}
    speed = speeds(plan, rates, [worker(BGE, "cuda:1")])[BGE]
    assert (speed.tokens_per_second, speed.workers) == (50.0, 0)


def test_a_rehearsal_says_nothing_about_the_real_models_speed():
    rates = {(rated_as(BGE, made_up=True), "cpu"): Rate(3e6, 9.0, 3.5, at=9.0)}
    real, rehearsed = (speeds(make_plan(primary=BGE, fake=fake), rates, [])[BGE] for fake in (False, True))
    assert (real.tokens_per_second, real.measured) == (None, False)
    assert (rehearsed.tokens_per_second, rehearsed.measured) == (3e6, True)


def test_a_model_that_was_never_measured_has_no_hours_and_neither_has_the_job(corpus, settings):
    plan = make_plan(primary=MINI, companions=[BGE])
    rates = {(MINI, "cpu"): Rate(1000.0, 10.0, 4.0, 1.0)}
    found = forecast(corpus, plan, settings, speeds(plan, rates, []))
    assert found.models[BGE].hours is None
    assert not found.models[BGE].speed.measured
    assert found.models[MINI].hours is not None
    assert found.hours is None
    assert json.loads(json.dumps(found.as_json(1 << 30)))["hours"] is None
