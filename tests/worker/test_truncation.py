"""Texts over the model's limit: cut, refused, or embedded in windows and pooled."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from registry.codecs import Dense, Multi, Sparse, pack_part, unpack_part
from registry.errors import EncodeError
from registry.models import MAX_MULTIVECTOR_VALUES, model
from registry.serving import served
from registry.settings import Settings, load_settings
from worker.encoders import fake
from worker.encoders.base import Encoder, MicroBatch
from worker.encoders.encode import Stopped, encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.fake import FakeEncoder
from worker.encoders.pooling import unit
from worker.encoders.tokens import TextTokenizer
from worker.encoders.truncation import Pool

ONNX, BGE = "qdrant-minilm-onnx", "bge-m3"
LONG = "def total(rows):\n    return sum(row.price * row.count for row in rows)  # größe 漢字\n" * 40
SPLIT = "split-and-pool"
Floats = npt.NDArray[np.float32]


def run(
    encoder: Any, texts: Sequence[str], kinds: Any = ("dense",), side: Any = "document", **more: Any
) -> Any:
    return encode(encoder, texts, side, kinds, device_lock=threading.Lock(), **more)


def make(truncation: str, name: str = BGE) -> FakeEncoder:
    return FakeEncoder(served(model(name), truncation=truncation), "", load_settings())


# --- pooling


def test_dense_is_the_mean_by_tokens_then_of_length_one() -> None:
    rows = unit(np.random.default_rng(5).standard_normal((3, 8)).astype(np.float32))
    pool = Pool(10)
    pool.add([250, 250], {"dense": Dense(rows[:2])})
    pool.add([20], {"dense": Dense(rows[2:])})
    got = pool.result()["dense"].values
    expected = 250 * rows[0] + 250 * rows[1] + 20 * rows[2]
    assert np.allclose(got[0], expected / np.linalg.norm(expected), atol=1e-6)
    # An unweighted mean, or a sum that was not normalised, would be seen.
    assert not np.allclose(got[0], unit(rows.mean(axis=0, keepdims=True))[0], atol=1e-2)


def test_sparse_is_the_largest_weight_of_each_token() -> None:
    pool = Pool(10)
    pool.add(
        [3, 3],
        {"sparse": Sparse(np.array([5, 9, 5, 7]), np.array([0.1, 0.9, 0.4, 0.2]), np.array([0, 2, 4]))},
    )
    pool.add([1], {"sparse": Sparse(np.array([1, 9]), np.array([0.3, 0.5]), np.array([0, 2]))})
    found = pool.result()["sparse"]
    assert isinstance(found, Sparse)
    assert found.indices.tolist() == [1, 5, 7, 9]
    assert np.allclose(found.values, [0.3, 0.4, 0.2, 0.9])
    assert found.offsets.tolist() == [0, 4]


def test_multi_is_all_rows_in_order_up_to_the_ceiling() -> None:
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    pool = Pool(5)
    pool.add([2, 1], {"multi": Multi(rows[:3], np.array([0, 2, 3]))})
    pool.add([4], {"multi": Multi(rows[3:], np.array([0, 4]))})
    found = pool.result()["multi"]
    assert isinstance(found, Multi)
    np.testing.assert_array_equal(found.values, rows[:5])
    assert found.offsets.tolist() == [0, 5]
    assert pool.rows_cut == 2


# --- windows of tokens


@pytest.mark.weights
@pytest.mark.parametrize("prefix", ["", "Candidate code snippet:\n"])
def test_windows_are_the_whole_text_each_with_prefix_and_special_tokens(
    minilm_snapshot: Any, prefix: str
) -> None:
    whole = Tokenizer.from_file(str(minilm_snapshot / "tokenizer.json"))
    reader = TextTokenizer(whole, 64, pad_id=0, padding_side="right")
    whole.no_padding()
    whole.no_truncation()
    ids = whole.encode(prefix + LONG).ids
    head = whole.encode(prefix).ids[:-1]
    found = [window.tokens for window in reader.windows(LONG, prefix)]
    assert all(tokens[: len(head)] == head and tokens[-1] == ids[-1] for tokens in found)
    assert all(len(tokens) == 64 for tokens in found[:-1])
    assert [*head, *(id_ for tokens in found for id_ in tokens[len(head) : -1]), ids[-1]] == ids
    assert sum(w.own_tokens for w in reader.windows(LONG, prefix)) == len(ids) - len(head) - 1
    (batch,) = reader.prepare([prefix + LONG], 64).micro_batches
    assert batch.tokens.ids[0].tolist() == found[0]
    assert [b.rows for b in reader.pack(reader.windows(LONG, prefix)[:3], 128)] == [(0, 1), (2,)]
    (short,) = reader.windows("short", prefix)
    assert short.tokens == whole.encode(prefix + "short").ids


@pytest.mark.weights
def test_a_limit_that_the_prefix_fills_is_an_error(minilm_snapshot: Any) -> None:
    whole = Tokenizer.from_file(str(minilm_snapshot / "tokenizer.json"))
    reader = TextTokenizer(whole, 5, pad_id=0, padding_side="right")
    with pytest.raises(EncodeError, match="all of the 5 tokens"):
        reader.windows(LONG, "one two three four five six")


# --- real vectors


@pytest.fixture(scope="session")
def splitting(real_settings: Settings, minilm_snapshot: Any) -> Encoder:
    return load_encoder(ONNX, "", real_settings, ["dense"], truncation=SPLIT)


def window_by_window(plain_model: Any, text: str, *, weighted: bool) -> Floats:
    """Upstream's own modules over each window of 254 tokens between [CLS] and [SEP], pooled by hand."""
    import torch

    tokenizer = plain_model.tokenizer
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    total = np.zeros(384, np.float64)
    for at in range(0, len(ids), 254):
        body = ids[at : at + 254]
        row = torch.tensor([[tokenizer.cls_token_id, *body, tokenizer.sep_token_id]])
        with torch.inference_mode():
            made = plain_model({"input_ids": row, "attention_mask": torch.ones_like(row)})
        total += made["sentence_embedding"][0].numpy() * (len(body) if weighted else 1)
    return (total / np.linalg.norm(total)).astype(np.float32)


@pytest.mark.weights
def test_a_long_text_has_the_pooled_vector_of_its_windows(
    splitting: Encoder, onnx_encoder: Encoder, plain_model: Any
) -> None:
    # The last window is short, and of other words: its weight matters.
    text = LONG + "the ship left the harbour at dawn"
    texts = ["short", text, "another short one"]
    part, cut = run(splitting, texts), run(onnx_encoder, texts)
    got = part.vectors["dense"].values
    assert float(got[1] @ window_by_window(plain_model, text, weighted=True)) >= 0.99999
    assert float(got[1] @ window_by_window(plain_model, text, weighted=False)) < 0.9999
    assert float(got[1] @ cut.vectors["dense"].values[1]) < 0.9999
    np.testing.assert_allclose(got[[0, 2]], cut.vectors["dense"].values[[0, 2]], atol=1e-6)
    assert part.tokens_seen.tolist() == part.tokens_kept.tolist() == cut.tokens_seen.tolist()
    assert cut.tokens_kept[1] == 256
    assert part.notes["windows"] == {"1": -(-(int(part.tokens_seen[1]) - 2) // 254)}
    assert part.rejected == {}
    assert warm_up(splitting, ["dense"]) > 0


@pytest.mark.weights
def test_a_text_over_the_limit_is_refused_with_its_count(
    real_settings: Settings, minilm_snapshot: Any
) -> None:
    failing = load_encoder(ONNX, "", real_settings, ["dense"], truncation="fail")
    fits = "word " * 254
    part = run(failing, ["short", LONG, fits, fits + "word"])
    assert set(part.rejected) == {1, 3}
    assert part.rejected[3].startswith(f"257 tokens, and {ONNX} takes 256;")
    assert part.tokens_kept[2] == part.tokens_seen[2] == 256
    assert unpack_part(pack_part(part)).rejected == part.rejected
    assert set(run(failing, [LONG]).rejected) == {0}


# --- any encoder


def test_queries_are_cut_but_refused_where_nothing_may_be_cut() -> None:
    text = "x" * (4 * 8192 + 100)
    split = run(make(SPLIT), [text], side="query")
    assert split.tokens_kept[0] == 8192 < split.tokens_seen[0]
    assert "windows" not in split.notes
    np.testing.assert_array_equal(
        unit(split.vectors["dense"].values), run_cut_space(text).vectors["dense"].values
    )
    assert set(run(make("fail"), [text], side="query").rejected) == {0}


def run_cut_space(text: str) -> Any:
    """The same text as one document in the same space, cut."""
    encoder = make(SPLIT)
    encoder.truncation = "cut"
    return run(encoder, [text])


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi"])
def test_every_output_of_a_text_in_windows(kind: Any) -> None:
    texts = ["a" * 50_000 + "b" * 50_000, "short", "c" * 40_000]
    part = run(make(SPLIT), texts, [kind])
    windows = 4 * (8192 - 2)
    assert part.notes["windows"] == {"0": -(-100_000 // windows), "2": 2}
    assert (part.tokens_kept == part.tokens_seen).all()
    alone = run(make(SPLIT), texts[:1], [kind])
    assert unpack_part(pack_part(part)).vectors.keys() == {kind}
    got, want = part.vectors[kind], alone.vectors[kind]
    if isinstance(got, Dense):
        np.testing.assert_array_equal(got.values[0], want.values[0])
    else:
        assert isinstance(got, Sparse | Multi)
        for a, b in zip(got.row(0), want.row(0), strict=True):
            np.testing.assert_array_equal(a, b)
    if isinstance(got, Multi):
        assert len(got.row(0)) == 4 * fake.MULTI_ROWS


def test_one_bad_window_rejects_its_text_and_no_other() -> None:
    bad = "a" * 70_000 + fake.POISON_NAN
    calls: list[int] = []
    part = run(make(SPLIT), ["good", bad, "b" * 50_000], on_progress=lambda: calls.append(1))
    assert set(part.rejected) == {1}
    assert "window 3 of 3: EncodeError" in part.rejected[1]
    assert part.tokens_kept[2] == part.tokens_seen[2]
    assert part.vectors["dense"].values[2].any()
    assert not part.vectors["dense"].values[1].any()
    assert len(calls) >= 3


class Small(FakeEncoder):
    """Its device has room for one window at a time, which its budget does not know."""

    def pack(self, windows: Any) -> list[MicroBatch]:
        together = super().pack(windows)
        if len(windows) == 1:
            return together
        return [MicroBatch(tuple(range(len(windows))), None, 1, 1, 1)]

    def forward(self, batch: MicroBatch) -> Any:
        if batch.tokens is None:
            raise MemoryError("too large")
        return super().forward(batch)


def test_windows_that_do_not_fit_together_go_alone() -> None:
    small = Small(served(model(BGE), truncation=SPLIT), "", load_settings())
    text = "a" * 100_000 + "b" * 7
    np.testing.assert_allclose(
        run(small, [text]).vectors["dense"].values,
        run(make(SPLIT), [text]).vectors["dense"].values,
        atol=1e-6,
    )


def test_a_lost_lease_and_a_stop_end_a_long_text_between_windows() -> None:
    text = "a" * 400_000

    def lost() -> None:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError):
        run(make(SPLIT), [text], on_progress=lost)
    done: list[int] = []
    with pytest.raises(Stopped):
        run(make(SPLIT), [text], on_progress=lambda: done.append(1), should_stop=lambda: len(done) >= 2)
    assert len(done) == 2


class Rows(FakeEncoder):
    """As many rows of a multi-vector as a real model gives: one for each token."""

    def finish(self, batch: MicroBatch, raw: Any, kinds: Any) -> Any:
        rows = [int(length) for length in batch.tokens.lengths]
        values = np.zeros((sum(rows), 1024), np.float32)
        values[:, 0] = 1
        return {"multi": Multi(values, np.concatenate([[0], np.cumsum(rows)]).astype(np.int64))}


def test_a_megabyte_of_rows_is_bounded_by_the_stores_ceiling_and_counted() -> None:
    encoder = Rows(served(model(BGE), truncation=SPLIT), "", load_settings())
    tracemalloc.start()
    part = run(encoder, ["word" * 262_144], ["multi"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    most = (MAX_MULTIVECTOR_VALUES - 1) // 1024
    found = part.vectors["multi"]
    assert isinstance(found, Multi)
    assert len(found.row(0)) == most
    assert part.notes["rows_cut"]["0"] >= 262_144 - most
    # All rows together would take a gigabyte; those of one window take 34 MB, and its checks as much.
    assert peak < 200 << 20
