"""A pipe as a corpus: read once, passed over as often as it takes."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import pytest

from producer.batching import windows
from producer.corpus import Corpus, open_corpus, open_pipe
from producer.problem import Problem
from registry.chunks import Chunk
from registry.errors import CorpusError, InfrastructureError
from registry.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path / "data")


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Both ends of a pipe, the writing one unbuffered."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        yield source, sink


def line(text: str, **fields: object) -> bytes:
    return json.dumps({"text": text, **fields}).encode() + b"\n"


def texts(items: Iterator[Chunk | Problem]) -> list[str]:
    return [item.text if isinstance(item, Chunk) else item.where for item in items]


def corpus_of(body: bytes, settings: Settings, name: str = "-") -> Corpus:
    return open_pipe(io.BufferedReader(io.BytesIO(body)), name=name, settings=settings)  # type: ignore[arg-type]


def test_chunks_come_before_the_pipe_has_ended_and_every_pass_has_all(settings, pipe):
    source, sink = pipe
    sink.write(line("one") + line("two"))
    corpus = open_pipe(source, name="-", settings=settings)
    first = corpus.items()
    assert texts(itertools.islice(first, 2)) == ["one", "two"]
    # A pass that was broken off, and one that goes on where the first did not come.
    second = corpus.items()
    assert texts(itertools.islice(second, 2)) == ["one", "two"]
    first.close()
    sink.write(line("three") + b"{broken\n" + line("five")[:-1])
    sink.close()
    assert texts(second) == ["three", "-:4", "five"]
    for _ in range(2):
        assert texts(corpus.items()) == ["one", "two", "three", "-:4", "five"]


def test_the_spool_has_no_name_and_stands_in_the_data_directory(settings):
    corpus = corpus_of(line("a" * 100_000), settings)
    spool = settings.data_dir / "spool"
    assert spool.is_dir()
    assert list(spool.iterdir()) == []
    open_files = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    [own] = [path for path in open_files if path.startswith(f"{spool}/")]
    assert own.endswith("(deleted)")
    del corpus
    open_files = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    assert own not in open_files


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def test_a_name_gives_the_ids_and_payloads_of_a_file_of_that_name(tmp_path, settings):
    body = line("a") + b"\n" + line("b", id="given") + line("c", path="src/a.py")
    (tmp_path / "notes.jsonl").write_bytes(body)
    file = list(open_corpus([tmp_path / "notes.jsonl"], root=None, settings=settings).items())
    named = corpus_of(body, settings, "notes.jsonl")
    assert list(named.items()) == file
    assert named.sources == ["notes.jsonl"]
    unnamed = list(corpus_of(body, settings).items())
    assert [a.id == b.id for a, b in zip(unnamed, file, strict=True)] == [False, True, False]
    assert unnamed[0].payload == {"path": "-", "line": 1}


def test_gzip_is_told_by_its_first_bytes_even_if_they_come_one_by_one(settings, pipe):
    source, sink = pipe
    body = gzip.compress(b"".join(line(f"text {i}") for i in range(1000)))

    def trickle() -> None:
        for part in (body[:1], body[1:2], body[2:]):
            sink.write(part)
        sink.close()

    writer = Thread(target=trickle)
    writer.start()
    corpus = open_pipe(source, name="-", settings=settings)
    assert texts(corpus.items()) == [f"text {i}" for i in range(1000)]
    writer.join()


def test_a_gzip_stream_that_breaks_off_is_reported(settings):
    body = gzip.compress(b"".join(line(f"text {i} {i * 7919}") for i in range(5000)))
    *_, last = corpus_of(body[:-3000], settings).items()
    assert isinstance(last, Problem)
    assert "damaged from here on" in last.reason


def test_a_pipe_larger_than_memory_streams(settings, pipe):
    source, sink = pipe

    def write() -> None:
        for start in range(0, 8_000, 500):
            sink.write(b"".join(line(f"{n} " * 300, id=f"n{n}") for n in range(start, start + 500)))
        sink.close()

    writer = Thread(target=write)
    writer.start()
    settings = settings.model_copy(update={"window_chunks": 256})
    corpus = open_pipe(source, name="-", settings=settings)
    tracemalloc.start()
    try:
        for _ in range(2):
            assert sum(len(window.chunks) for window in windows(corpus.items(), settings)) == 8_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    writer.join()
    # The filter of ids takes 2 MiB a pass, whatever the corpus.
    assert peak < 8 << 20


def test_nothing_on_the_pipe_is_an_error(settings):
    with pytest.raises(CorpusError, match="nothing came on standard input"):
        corpus_of(b"", settings)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a\nb", "\ud800"])
def test_a_name_that_names_nothing_is_refused(settings, name):
    with pytest.raises(CorpusError, match="choose a name"):
        corpus_of(line("a"), settings, name)


def test_a_stream_that_cannot_be_read_is_an_error(settings, pipe):
    source, _ = pipe
    source.close()
    with pytest.raises(CorpusError, match="standard input cannot be read"):
        open_pipe(source, name="-", settings=settings)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    settings = Settings(_env_file=None, data_dir=tmp_path / "file")
    with pytest.raises(InfrastructureError, match="V5_DATA_DIR"):
        corpus_of(line("a"), settings)


def test_a_disk_that_fills_up_is_no_fault_of_the_corpus(settings, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InfrastructureError, match="No space left on device"):
        corpus_of(line("a"), settings)
