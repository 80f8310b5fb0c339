"""What must not become slow unseen: ratios to something in the same process, in CPU time, so that a machine
which is busy with other things changes little. The bounds lie well beyond what is measured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chunks import stdlib_chunks
from producer.batching import cut_batches, windows
from producer.corpus import open_corpus
from registry.chunks import Chunk
from registry.models import model
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.weights import locate

pytestmark = pytest.mark.weights

ONNX = "qdrant-minilm-onnx"
#: Turns that each contender gets; its best one counts.
TURNS = 2


@pytest.fixture(scope="module")
def chunks() -> list[str]:
    """Real code, as the producer cuts it, in a random order."""
    return stdlib_chunks(400)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With one thread nothing spins while it waits, so CPU time is work."""
    torch = pytest.importorskip("torch")
    had = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(had)


def in_turns(*contenders: Callable[[], Any]) -> list[float]:
    """CPU seconds of each one's best turn."""
    best = [float("inf")] * len(contenders)
    for _ in range(TURNS):
        for i, run in enumerate(contenders):
            begun = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - begun)
    return best


@pytest.mark.usefixtures("one_thread")
def test_the_encoder_is_faster_than_sentence_transformers(chunks: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    settings = load_settings(device="cpu", threads=1)
    encoder = load_encoder(ONNX, "", settings, ["dense"])
    plain = SentenceTransformer(str(locate(model("all-miniLM-l6"), settings).path), device="cpu")
    plain.max_seq_length = encoder.space("dense").max_tokens
    lock = threading.Lock()
    texts = chunks[:48]
    ours, theirs = in_turns(
        lambda: encode(encoder, texts, "document", ["dense"], device_lock=lock),
        lambda: plain.encode(texts, show_progress_bar=False),
    )
    print(f"encoder: {theirs / ours:.2f} times as fast")
    assert theirs / ours >= 1.3


def test_little_of_a_batch_is_padding(chunks: list[str]) -> None:
    settings = load_settings(device="cpu")
    encoder = load_encoder(ONNX, "", settings, ["dense"])
    items = [Chunk(id=str(i), text=text, payload={}) for i, text in enumerate(chunks)]
    useful = padded = 0
    for window in windows(items, settings):
        for batch in cut_batches(window.chunks, settings):
            for micro in encoder.prepare([chunk.text for chunk in batch], "document").micro_batches:
                useful += micro.useful_tokens
                padded += micro.padded_tokens
    print(f"padding: {1 - useful / padded:.3f}")
    assert 1 - useful / padded <= 0.05


def test_a_corpus_is_cut_at_a_small_multiple_of_parsing_it(tmp_path: Path) -> None:
    rows = [{"id": f"row-{i}", "text": f"def f{i}(x):\n    return x * {i}\n" * 12} for i in range(4000)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = load_settings()

    def cut() -> None:
        items = open_corpus([file], root=tmp_path, settings=settings).items()
        count = sum(len(b) for w in windows(items, settings) for b in cut_batches(w.chunks, settings))
        assert count == len(rows)

    def parse() -> None:
        for line in file.read_text().splitlines():
            json.loads(line)

    cutting, parsing = in_turns(cut, parse)
    print(f"cutting: {cutting / parsing:.1f} times parsing")
    assert cutting / parsing <= 30
