"""Made-up corpora of any size, written as a stream: their text compresses as real text does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Chunks of one V4 file, and rows of one Parquet row group.
FILE_CHUNKS = 1000
_WORDS = [f"{'bcdfghjklmnprstvwz'[i % 18]}{i:x}" for i in range(4096)]


def write_jsonl(folder: Path, count: int, characters: int = 600) -> Path:
    """JSON Lines with texts of so many characters on average, and a small payload."""
    path = folder / "corpus.jsonl"
    with path.open("w") as out:
        for record in _records(count, characters):
            out.write(json.dumps(record) + "\n")
    return path


def write_v4(folder: Path, count: int, characters: int = 600) -> Path:
    """A folder of V4 chunk files, each chunk with scores and thirty sparse features."""
    home = folder / "v4"
    home.mkdir()
    rng, content = random.Random(5), []
    for number, record in enumerate(_records(count, characters)):
        content.append(_v4(record, rng))
        if len(content) == FILE_CHUNKS or number == count - 1:
            (home / f"{number}_chunks.json").write_text(json.dumps(content))
            content.clear()
    return home


def write_parquet(folder: Path, count: int, characters: int = 600) -> Path:
    """The records of the JSON Lines as a table."""
    import pyarrow as pa
    from pyarrow import parquet

    path, rows, writer = folder / "corpus.parquet", [], None
    for number, record in enumerate(_records(count, characters)):
        rows.append(record)
        if len(rows) == FILE_CHUNKS or number == count - 1:
            table = pa.Table.from_pylist(rows)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            rows.clear()
    if writer is not None:
        writer.close()
    return path


def _records(count: int, characters: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(3)
    words = characters // 5
    for number in range(count):
        line = number % 20 * 30
        yield {
            "id": f"c{number}",
            "text": " ".join(rng.choices(_WORDS, k=rng.randint(words // 3 or 1, words * 5 // 3))),
            "path": f"src/module{number // 20}.py",
            "start_line": line,
            "end_line": line + 29,
            "metadata": {"repo": "acme", "number": number},
        }


def _v4(record: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    return {
        "text": record["text"],
        "metadata": {
            "chunk_id": record["id"],
            "source_file": record["path"],
            "start_line": record["start_line"],
            "end_line": record["end_line"],
            "token_count": 160,
            "file_extension": ".py",
        },
        "advanced_scores": {"semantic": round(rng.random(), 6), "structural": round(rng.random(), 6)},
        "sparse_features": {
            "indices": rng.sample(range(30_000), 30),
            "values": [round(rng.random(), 4) for _ in range(30)],
        },
    }
