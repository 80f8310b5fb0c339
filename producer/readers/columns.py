"""The columns of a table of chunks, and the JSON that their cells become.

Structs and maps become objects, lists arrays, decimals strings with all their digits, dates `2026-01-31`,
times `23:59:59`, timestamps `2026-01-31 23:59:59.123` (in UTC with a `Z` where the column has a zone),
durations integers in the column's unit. A null cell leaves its key out. Bytes have no place in JSON: columns
and fields of them are left out, and said; so are structs with two fields of one name, and UUIDs that are not
a column of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from producer.draft import Draft, place
from producer.problem import Problem
from producer.readers.record import draft_of
from registry.errors import CorpusError


class Columns:
    """The columns that are read, and what each becomes."""

    def __init__(self, schema: pa.Schema, name: str) -> None:
        """Raises CorpusError if the schema is none of chunks."""
        names = list(schema.names)
        if "text" not in names:
            raise CorpusError(f"{name}: no column `text`; its columns: {', '.join(names) or 'none'}")
        twice = sorted({column for column in names if names.count(column) > 1})
        if twice:
            raise CorpusError(f"{name}: two columns are called {twice[0]!r}; rename one")
        self.left_out: list[str] = []
        #: Per column, the type it is cast to on the way to Python.
        self._plain: dict[str, pa.DataType] = {}
        for field in schema:
            whole = field.type == pa.uuid()
            plain = field.type if whole else _plain(field.type, field.name, self.left_out)
            if plain is not None:
                self._plain[field.name] = plain
        for column, fits, what in _WANTED:
            if column not in names:
                continue
            kind = schema.field(column).type
            readable = column in self._plain and fits(_bare(kind))
            if not readable and (column == "text" or not pa.types.is_null(kind)):
                raise CorpusError(f"{name}: column `{column}` is {kind}, not {what}; cast it")
        self.names = list(self._plain)

    def drafts(self, batch: pa.RecordBatch, label: str, first: int) -> Iterator[Draft | Problem]:
        """The drafts of a slice whose first row is row `first` of the file."""
        cells = {name: _values(batch.column(name), plain) for name, plain in self._plain.items()}
        for index in range(batch.num_rows):
            record = {name: values[index] for name, values in cells.items() if values[index] is not None}
            yield _draft(label, first + index, record)


def _bare(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, where a dictionary or an extension wraps them."""
    if isinstance(kind, pa.BaseExtensionType) and kind != pa.uuid():
        return _bare(kind.storage_type)
    return _bare(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


#: What the columns with a meaning must be.
_WANTED: tuple[tuple[str, Callable[[pa.DataType], bool], str], ...] = (
    ("text", _is_text, "a string"),
    ("id", lambda t: _is_text(t) or pa.types.is_integer(t) or t == pa.uuid(), "a string or integer"),
    (
        "metadata",
        lambda t: _is_text(t) or pa.types.is_struct(t) or pa.types.is_map(t),
        "a struct, a map, or JSON as a string",
    ),
)


def _draft(label: str, row: int, record: dict[str, Any]) -> Draft | Problem:
    for name, value in record.items():
        if isinstance(value, _Unreadable):
            return Problem(place(label, row), f"column {name!r}: {value.reason}")
    metadata = record.get("metadata")
    if isinstance(metadata, str):
        try:
            record["metadata"] = json.loads(metadata, parse_constant=lambda _: None) if metadata else None
        except (ValueError, RecursionError) as error:
            return Problem(place(label, row), f"metadata is not JSON: {error}")
    return draft_of(label, row, record, "row")


class _Unreadable:
    """Stands for a cell that has no value in JSON."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _values(column: pa.Array, plain: pa.DataType) -> list[Any]:
    """The cells of a column as JSON values."""
    if column.type == pa.uuid():
        return [None if cell is None else str(cell) for cell in column.to_pylist()]
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if column.type != plain:
        # In two steps: a zone must become UTC before an instant becomes text.
        column = column.cast(_mapped(column.type, _in_utc)).cast(plain)
    try:
        cells: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except (UnicodeDecodeError, KeyError):
        cells = [_value(cell) for cell in column]
    return cells


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError as error:
        return _Unreadable(f"not valid UTF-8 at byte {error.start}")
    except KeyError:
        return _Unreadable("a map has a key twice")


def _plain(kind: pa.DataType, name: str, left_out: list[str]) -> pa.DataType | None:
    """The type whose Python values are JSON; None where there is none, noted in `left_out`."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    types = pa.types
    if types.is_struct(kind):
        if len({field.name for field in kind}) < kind.num_fields:
            left_out.append(f"column {name} has two fields of one name; the chunks go without it")
            return None
        fields = [(field.name, _plain(field.type, f"{name}.{field.name}", left_out)) for field in kind]
        kept = [(field, plain) for field, plain in fields if plain is not None]
        return pa.struct(kept) if kept or not fields else None
    if types.is_map(kind):
        key = _plain(kind.key_type, f"{name} (key)", left_out)
        item = _plain(kind.item_type, f"{name} (value)", left_out)
        return None if key is None or item is None else pa.map_(pa.string(), item)
    if _is_list(kind):
        item = _plain(kind.value_type, f"{name}[]", left_out)
        return None if item is None else pa.list_(item)
    if types.is_dictionary(kind):
        return _plain(kind.value_type, name, left_out)
    leaf = _leaf(kind)
    if leaf is None:
        left_out.append(f"column {name} is {kind}, which JSON cannot hold; the chunks go without it")
    return leaf


def _leaf(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_null(kind):
        return kind
    if types.is_floating(kind):
        return pa.float64()
    if types.is_duration(kind):
        return pa.int64()
    text = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_decimal, types.is_date,
        types.is_time, types.is_timestamp,
    )  # fmt: skip
    return pa.string() if any(is_one(kind) for is_one in text) else None


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _in_utc(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _in_utc(kind.value_type)
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz else kind


def _mapped(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with its leaves changed."""
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([(field.name, _mapped(field.type, leaf)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_mapped(kind.key_type, leaf), _mapped(kind.item_type, leaf))
    if _is_list(kind):
        return pa.list_(_mapped(kind.value_type, leaf))
    return leaf(kind)
