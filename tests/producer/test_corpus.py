"""A corpus as a whole: streaming, repetition, sizes."""

from __future__ import annotations

import itertools
import json
import shutil
import tracemalloc
from pathlib import Path

from producer.batching import windows
from producer.corpus import open_corpus
from registry.chunks import Chunk

STDLIB = Path(json.__file__).parent


def test_a_directory_may_mix_formats(tmp_path, settings):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a_chunks.json").write_text('[{"text": "one"}]')
    (tmp_path / "p/b.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "p/c.md").write_text("three")
    corpus = open_corpus([tmp_path / "p"], root=None, settings=settings)
    assert corpus.formats == ("jsonl", "plain", "v4")
    assert corpus.sources == ["p"]
    assert corpus.estimate().files == 3
    assert corpus.estimate().bytes == 17 + 16 + 5
    assert [item.text for item in corpus.items() if isinstance(item, Chunk)] == ["one", "two", "three"]


def test_every_pass_is_the_same(settings):
    corpus = open_corpus([STDLIB], root=None, settings=settings)
    first = list(corpus.items())
    assert list(corpus.items()) == first
    ids = [item.id for item in first if isinstance(item, Chunk)]
    assert len(set(ids)) == len(ids) > 20


def test_a_changed_file_changes_its_own_chunks_only(tmp_path, settings):
    shutil.copytree(STDLIB, tmp_path / "json", ignore=shutil.ignore_patterns("__pycache__"))
    corpus = open_corpus([tmp_path / "json"], root=None, settings=settings)
    before = {item.id: item for item in corpus.items() if isinstance(item, Chunk)}
    with (tmp_path / "json/tool.py").open("a") as file:
        file.write("\n# the end\n")
    after = {item.id: item for item in corpus.items() if isinstance(item, Chunk)}
    changed = {i for i in before.keys() | after.keys() if before.get(i) != after.get(i)}
    assert changed == {i for i, chunk in after.items() if chunk.payload["path"] == "json/tool.py"}


def test_a_corpus_larger_than_memory_streams(tmp_path, settings):
    file = tmp_path / "c.jsonl"
    with file.open("w") as out:
        for number in range(20_000):
            out.write(json.dumps({"text": f"{number} " * 300, "id": f"n{number}"}) + "\n")
    settings = settings.model_copy(update={"window_chunks": 256})
    corpus = open_corpus([file], root=None, settings=settings)
    tracemalloc.start()
    try:
        chunks = sum(len(window.chunks) for window in windows(corpus.items(), settings))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert chunks == 20_000
    assert file.stat().st_size > 30 << 20
    # The filter of ids takes 2 MiB a pass, whatever the corpus.
    assert peak < 8 << 20


def test_a_pass_reads_no_further_than_asked(tmp_path, settings):
    file = tmp_path / "c.jsonl"
    file.write_text('{"text": "a"}\n' * 3)
    items = open_corpus([file], root=None, settings=settings).items()
    assert len(list(itertools.islice(items, 2))) == 2
    items.close()


def test_a_file_that_vanishes_under_way_is_a_problem_among_chunks(tmp_path, settings):
    (tmp_path / "p").mkdir()
    for name in "abc":
        (tmp_path / "p" / f"{name}.txt").write_text(name)
    items = open_corpus([tmp_path / "p"], root=None, settings=settings).items()
    next(items)
    (tmp_path / "p/b.txt").unlink()
    gone, last = items
    assert gone.where == "p/b.txt"
    assert gone.severity == "rejected"
    assert last.text == "c"
