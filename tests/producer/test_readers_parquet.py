"""Parquet: what a row may bring, what a bad row, column or file costs, and how much is in memory."""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.corpus import open_corpus
from producer.readers import parquet
from registry.chunks import chunk_id
from registry.errors import CorpusError
from registry.settings import Settings


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_a_row_becomes_a_chunk_with_its_payload(tmp_path, read):
    columns = {
        "text": ["a\nb"],
        "id": [7],
        "metadata": [{"k": [1], "none": None}],
        "tag": ["x"],
        "path": ["src/a.py"],
        "v5": [1],
        "empty": pa.array([None], pa.string()),
    }
    [chunk] = read(table(tmp_path / "c.parquet", columns)).chunks
    assert chunk.id == chunk_id("7")
    assert chunk.text == "a\nb"
    assert chunk.payload == {
        "path": "src/a.py",
        "language": "python",
        "tag": "x",
        "metadata": {"k": [1], "none": None, "v5": 1},
    }


def test_without_id_a_chunk_is_named_by_its_row_over_all_row_groups(tmp_path, read):
    file = table(
        tmp_path / "c.parquet", {"text": list("abcde"), "id": ["", None, "x", "", None]}, row_group_size=2
    )
    found = read(file)
    assert found.texts == list("abcde")
    assert [c.id for c in found.chunks] == [
        chunk_id("x") if row == 2 else chunk_id(None, "c.parquet", row) for row in range(5)
    ]
    assert [c.payload for c in found.chunks] == [{"path": "c.parquet", "row": row} for row in range(5)]


def test_rows_are_counted_through_the_slices_of_a_row_group(tmp_path, read):
    rows = 2 * parquet.SLICE_ROWS + 3
    found = read(table(tmp_path / "c.parquet", {"text": [f"t{row}" for row in range(rows)]}))
    assert [(c.payload["row"], c.text) for c in found.chunks] == [(row, f"t{row}") for row in range(rows)]
    assert len({c.id for c in found.chunks}) == rows


@pytest.mark.parametrize(
    ("cell", "kind", "held"),
    [
        (
            {"a": {"b": [1, None]}},
            pa.struct([("a", pa.struct([("b", pa.list_(pa.int8()))]))]),
            {"a": {"b": [1, None]}},
        ),
        ([("k", 1), ("l", None)], pa.map_(pa.string(), pa.int32()), {"k": 1, "l": None}),
        ([(3, Decimal("1.50"))], pa.map_(pa.int32(), pa.decimal128(5, 2)), {"3": "1.50"}),
        ([[1.5], []], pa.large_list(pa.list_(pa.float16())), [[1.5], []]),
        ([1, 2], pa.list_(pa.int32(), 2), [1, 2]),
        (Decimal("12345678901234567890.10"), pa.decimal256(40, 2), "12345678901234567890.10"),
        (date(2026, 1, 31), pa.date32(), "2026-01-31"),
        (date(2026, 1, 31), pa.date64(), "2026-01-31"),
        (time(23, 59, 59, 5), pa.time64("us"), "23:59:59.000005"),
        (datetime(2026, 1, 31, 23, 59, 59), pa.timestamp("ms"), "2026-01-31 23:59:59.000"),
        (1_600_000_000_123_456_789, pa.timestamp("ns"), "2020-09-13 12:26:40.123456789"),
        (datetime(2026, 1, 1, tzinfo=UTC), pa.timestamp("ms", "Europe/Berlin"), "2026-01-01 00:00:00.000Z"),
        (
            [datetime(2026, 1, 1, tzinfo=UTC)],
            pa.list_(pa.timestamp("ms", "+02:00")),
            ["2026-01-01 00:00:00.000Z"],
        ),
        (timedelta(seconds=2), pa.duration("ms"), 2000),
        (float("nan"), pa.float64(), None),
        (2**64 - 1, pa.uint64(), str(2**64 - 1)),
        (True, pa.bool_(), True),
        ("x", pa.large_string(), "x"),
        ("x", pa.dictionary(pa.int8(), pa.string()), "x"),
        (["x"], pa.list_(pa.dictionary(pa.int8(), pa.string())), ["x"]),
        ({"keep": 1, "drop": b"\0"}, pa.struct([("keep", pa.int8()), ("drop", pa.binary())]), {"keep": 1}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_type_has_one_form_in_json(tmp_path, read, cell, kind, held):
    [chunk] = read(table(tmp_path / "c.parquet", {"text": ["a"], "x": pa.array([cell], kind)})).chunks
    assert chunk.payload["x"] == held
    assert type(chunk.payload["x"]) is type(held)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]
)
def test_text_may_be_any_kind_of_string(tmp_path, read, kind):
    texts = ["one", "two", "one"]
    assert read(table(tmp_path / "c.parquet", {"text": pa.array(texts).cast(kind)})).texts == texts


def test_an_empty_id_or_metadata_column_is_as_good_as_none(tmp_path, read):
    nothing = pa.array([None], pa.null())
    columns = {"text": ["a"], "id": nothing, "metadata": nothing}
    [chunk] = read(table(tmp_path / "c.parquet", columns)).chunks
    assert chunk.id == chunk_id(None, "c.parquet", 0)


def test_an_id_may_come_from_a_dictionary(tmp_path, read):
    ids = pa.array([5, 5, 6]).dictionary_encode()
    found = read(table(tmp_path / "c.parquet", {"text": ["a", "a", "b"], "id": ids}))
    assert [c.id for c in found.chunks] == [chunk_id("5"), chunk_id("6")]
    [again] = found.skipped
    assert "repeats id '5' of c.parquet[0]" in again.reason


def test_a_uuid_is_an_id(tmp_path, read):
    given = uuid.UUID(int=5)
    ids = pa.array([given.bytes], pa.uuid())
    [chunk] = read(table(tmp_path / "c.parquet", {"text": ["a"], "id": ids, "other": ids})).chunks
    assert chunk.id == chunk_id(str(given))
    assert chunk.payload["other"] == str(given)


def test_metadata_may_be_json_and_bad_json_costs_its_row(tmp_path, read):
    metadata = ['{"n": NaN, "k": [1]}', None, "", "null", "{oops", "[1]"]
    found = read(table(tmp_path / "c.parquet", {"text": list("abcdef"), "metadata": metadata}))
    assert [c.payload.get("metadata") for c in found.chunks] == [{"n": None, "k": [1]}, None, None, None]
    assert [(p.where, p.reason[:20]) for p in found.rejected] == [
        ("c.parquet[4]", "metadata is not JSON"),
        ("c.parquet[5]", "metadata is not an o"),
    ]


def test_bytes_are_left_out_and_said_once(tmp_path, read):
    columns = {
        "text": ["a", "b"],
        "image": [b"\x89PNG", b"\x89PNG"],
        "deep": pa.array([[b"x"], []], pa.list_(pa.binary())),
    }
    found = read(table(tmp_path / "c.parquet", columns))
    assert [set(c.payload) for c in found.chunks] == [{"path", "row"}] * 2
    assert [p.reason.split(",")[0] for p in found.skipped] == [
        "column image is binary",
        "column deep[] is binary",
    ]
    assert found.rejected == []


def test_what_json_cannot_say_within_others_is_left_out_and_said(tmp_path, read):
    uuids = pa.array([uuid.UUID(int=5).bytes] * 2, pa.uuid())
    numbers = pa.array([1, 2])
    columns = {
        "text": ["a", "b"],
        "listed": pa.ListArray.from_arrays([0, 1, 2], uuids),
        "held": pa.StructArray.from_arrays([uuids, numbers], ["u", "n"]),
        "twin": pa.StructArray.from_arrays([numbers, numbers], ["n", "n"]),
    }
    found = read(table(tmp_path / "c.parquet", columns))
    assert [c.payload for c in found.chunks] == [
        {"path": "c.parquet", "row": row, "held": {"n": row + 1}} for row in range(2)
    ]
    assert [p.reason.split(" is ")[0].split(" has ")[0] for p in found.skipped] == [
        "column listed[]",
        "column held.u",
        "column twin",
    ]


def test_bad_rows_cost_those_rows(tmp_path, read):
    settings = Settings(_env_file=None, max_chunk_bytes=1024)
    rows: list[tuple[Any, str | None]] = [
        ("good", None),
        (None, "no text"),
        (" \n", "empty text"),
        ("x" * 1025, "V5_MAX_CHUNK_BYTES"),
        ("again", "already stands for another text at c.parquet[0]"),
        ("last", None),
    ]
    ids = ["first", "b", "c", "d", "first", "f"]
    found = read(table(tmp_path / "c.parquet", {"text": [r[0] for r in rows], "id": ids}), settings=settings)
    assert found.texts == ["good", "last"]
    assert [p.where for p in found.rejected] == [f"c.parquet[{row}]" for row in (1, 2, 3, 4)]
    for problem, (_, reason) in zip(found.rejected, rows[1:5], strict=True):
        assert reason is not None
        assert reason in problem.reason


def test_a_cell_that_is_no_unicode_or_no_object_costs_its_row(tmp_path, read):
    text = pa.array([b"ok", b"\xff", b"fine", b"well"], pa.binary()).view(pa.string())
    pairs = pa.array([[], [], [("k", 1), ("k", 2)], [("k", 1)]], pa.map_(pa.string(), pa.int8()))
    found = read(table(tmp_path / "c.parquet", {"text": text, "pairs": pairs}))
    assert found.texts == ["ok", "well"]
    assert [(p.where, p.reason) for p in found.rejected] == [
        ("c.parquet[1]", "column 'text': not valid UTF-8 at byte 0"),
        ("c.parquet[2]", "column 'pairs': a map has a key twice"),
    ]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"body": ["a"], "title": ["b"]}, "no column `text`; its columns: body, title"),
        ({"text": [1]}, "column `text` is int64, not a string"),
        ({"text": [b"a"]}, "column `text` is binary, not a string"),
        ({"text": [["a"]]}, "column `text` is list"),
        ({"text": [date(2026, 1, 1)]}, "column `text` is date32[day], not a string"),
        ({"text": pa.array([None], pa.null())}, "column `text` is null, not a string"),
        ({"text": ["a"], "id": [Decimal("1.5")]}, "column `id` is decimal128(2, 1), not a string"),
        ({"text": ["a"], "id": [1.5]}, "column `id` is double, not a string or integer"),
        ({"text": ["a"], "metadata": [1]}, "column `metadata` is int64, not a struct, a map"),
    ],
)
def test_a_file_that_is_no_table_of_chunks_is_refused_by_name_and_a_problem_in_a_folder(
    tmp_path, read, columns, reason
):
    (tmp_path / "p").mkdir()
    file = table(tmp_path / "p/bad.parquet", columns)
    table(tmp_path / "p/good.parquet", {"text": ["good"]})
    with pytest.raises(CorpusError, match=r"bad\.parquet: ") as refused:
        read(file)
    assert reason in str(refused.value)
    found = read(tmp_path / "p")
    assert found.texts == ["good"]
    [problem] = found.rejected
    assert problem.where == "p/bad.parquet"
    assert reason in problem.reason


def test_a_column_twice_is_refused(tmp_path, read):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), tmp_path / "c.parquet"
    )
    with pytest.raises(CorpusError, match="two columns are called 'text'"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize("body", [b"", b"hello", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, read, body):
    file = tmp_path / "c.parquet"
    file.write_bytes(body)
    with pytest.raises(CorpusError, match=r"c\.parquet: not a whole Parquet file"):
        read(file)


def test_a_truncated_file_is_refused(tmp_path, read):
    file = table(tmp_path / "c.parquet", {"text": [f"text {i}" for i in range(1000)]})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorpusError, match="not a whole Parquet file"):
        read(file)


def test_a_damaged_row_group_costs_its_rows(tmp_path, read):
    texts = [f"text {i} {i * 7919}" for i in range(3000)]
    file = table(tmp_path / "c.parquet", {"text": texts}, row_group_size=1000, use_dictionary=False)
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    body = bytearray(file.read_bytes())
    body[start : start + 400] = b"\xff" * 400
    file.write_bytes(body)
    found = read(file)
    assert found.texts == texts[:1000] + texts[2000:]
    [problem] = found.rejected
    assert problem.where == "c.parquet[1000]"
    assert "rows 1000 to 1999 cannot be read" in problem.reason


def test_a_table_without_rows_is_an_empty_corpus(tmp_path, read):
    assert read(table(tmp_path / "c.parquet", {"text": pa.array([], pa.string())})).items == []


def test_a_large_row_group_streams(tmp_path, settings):
    """In a process of its own: Arrow's memory is not Python's."""
    file = tmp_path / "c.parquet"
    schema = pa.schema([("text", pa.string()), ("id", pa.int64())])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        # One row group of 200 MB.
        chunk = [f"{number} " * 2000 for number in range(1000, 1010)]
        rows = pa.table({"text": chunk * 2000, "id": list(range(20_000))}, schema)
        writer.write_table(rows, row_group_size=len(rows))
    assert pq.ParquetFile(file).metadata.row_group(0).total_byte_size > 190 << 20
    program = (
        "import resource, sys; from pathlib import Path\n"
        "import pyarrow.parquet\n"
        "from producer.corpus import open_corpus; from registry.settings import Settings\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "corpus = open_corpus([Path(sys.argv[1])], root=None, settings=Settings(_env_file=None))\n"
        "before = peak()\n"
        "assert sum(1 for _ in corpus.items()) == 20_000\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 64, f"{done.stdout} MiB more for a row group of 200 MB"


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, settings, monkeypatch):
    file = table(tmp_path / "c.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError) as refused:
        open_corpus([file], root=None, settings=settings)
    assert parquet.INSTALL in str(refused.value)
    assert parquet.INSTALL == "pip install 'v5-embedding-fleet[parquet]'"
    folder = tmp_path / "p"
    folder.mkdir()
    file.rename(folder / "c.parquet")
    (folder / "a.txt").write_text("prose")
    problem, chunk = sorted(
        open_corpus([folder], root=None, settings=settings).items(), key=lambda item: item.id is not None
    )
    assert parquet.INSTALL in problem.reason
    assert chunk.text == "prose"
