"""Parquet: a table with a column `text`, one chunk a row; `id`, `metadata` and others are optional."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from producer.draft import Draft, place
from producer.problem import Problem
from producer.readers.file import CorpusFile
from registry.errors import CorpusError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

INSTALL = "pip install 'v5-embedding-fleet[parquet]'"
#: So much of a row group, as stored, becomes Python objects at once. Bytes.
SLICE_BYTES = 4 << 20
#: … and so many rows at most: a dictionary stores a repeated text once, in memory each row has it.
SLICE_ROWS = 256
#: A column is read through a buffer of this size, instead of as a whole per row group. Bytes.
_BUFFER_BYTES = 256 << 10


def check_parquet(path: Path) -> None:
    """Raises CorpusError if the file cannot be read as a table of chunks, saying why."""
    with _opened(path) as table:
        from producer.readers.columns import Columns

        Columns(table.schema_arrow, path.name)


def read_parquet(file: CorpusFile) -> Iterator[Draft | Problem]:
    """The drafts of a file, a slice of a row group in memory; ordinals are row numbers from 0.

    A row group that is damaged is reported where it breaks off; the next ones are read.
    """
    try:
        table = _opened(file.path)
    except CorpusError as error:
        yield Problem(file.label, str(error).removeprefix(f"{file.path.name}: "))
        return
    import pyarrow as pa

    from producer.readers.columns import Columns

    with table:
        try:
            columns = Columns(table.schema_arrow, file.label)
        except CorpusError as error:
            yield Problem(file.label, str(error).removeprefix(f"{file.label}: "))
            return
        for said in columns.left_out:
            yield Problem(file.label, said, "skipped")
        first = 0
        for number in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(number)
            row, end = first, first + group.num_rows
            first = end
            rows = max(1, min(SLICE_ROWS, SLICE_BYTES * group.num_rows // max(1, group.total_byte_size)))
            try:
                for batch in table.iter_batches(rows, [number], columns.names, use_threads=False):
                    yield from columns.drafts(batch, file.label, row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                said = f"damaged: rows {row} to {end - 1} cannot be read: {_first_line(error)}"
                yield Problem(place(file.label, row), said)


def _opened(path: Path) -> ParquetFile:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise CorpusError(f"{path.name}: Parquet is read with pyarrow, which is missing: {INSTALL}") from None
    try:
        return ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path.name}: not a whole Parquet file: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
