"""A corpus: submitted paths as one lazy stream of chunks and problems."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from producer.draft import PIPE_LABEL, Draft, finish, place
from producer.duplicates import SeenIds
from producer.problem import Problem
from producer.readers.file import CorpusFile, Format, format_of, raw_bytes, unfit, why
from producer.readers.jsonl import read_jsonl
from producer.readers.parquet import check_parquet, read_parquet
from producer.readers.pipe import Pipe, PipedFile
from producer.readers.plain import CHUNK_CHARS, is_binary, read_plain
from producer.readers.tree import Tree, printable
from producer.readers.v4 import load_v4, read_v4
from registry.chunks import Chunk
from registry.errors import CorpusError
from registry.settings import Settings

_LOOKED_FOR = (
    "*_chunks.json (V4 chunks), *.jsonl and *.ndjson (JSON Lines), *.parquet, and source code or text"
)


@dataclass(frozen=True)
class Estimate:
    """The size of a corpus, for progress; what is left out is not in it."""

    files: int
    #: On disk: compressed files count as they are.
    bytes: int


@dataclass(frozen=True)
class Corpus:
    """Submitted files and folders. Nothing is held but their names; each pass reads them anew."""

    _sources: tuple[CorpusFile | Tree, ...]
    _max_chunk_bytes: int
    _min_tokens: int | None
    _chunk_chars: int
    #: What part of it this is, where it is not the whole: `shard 1/4`. A job of a part is a job of its own.
    part: str = ""
    _keep: Callable[[Chunk | Problem], bool] | None = None

    def narrowed(self, part: str, keep: Callable[[Chunk | Problem], bool]) -> Corpus:
        """The part of this corpus that `keep` says yes to; all of it is still read."""
        had = self._keep
        both = keep if had is None else lambda item: had(item) and keep(item)
        return replace(self, part=f"{self.part} {part}".lstrip(), _keep=both)

    @property
    def sources(self) -> list[str]:
        """The submitted paths as labels, sorted: they begin the `path` of every chunk cut from a plain file.

        Equal wherever the corpus is read from, as ids are.
        """
        return sorted(source.label or "." for source in self._sources)

    @property
    def formats(self) -> tuple[Format, ...]:
        """What the corpus is made of, by its files' names. Walks the folders once."""
        return self._survey[0]

    def estimate(self) -> Estimate:
        """How much there is to read. Walks the folders once and opens no file."""
        return self._survey[1]

    @cached_property
    def _survey(self) -> tuple[tuple[Format, ...], Estimate]:
        formats: set[Format] = set()
        files = size = 0
        for file in self._files():
            if isinstance(file, CorpusFile):
                formats.add(file.format)
                files += 1
                size += file.size
        return tuple(sorted(formats)), Estimate(files, size)

    def items(self) -> Iterator[Chunk | Problem]:
        """A fresh pass, in the same order each time. A bad item is a Problem among good chunks.

        Memory is bounded by the largest V4 file, plain file, line and folder listing, not by the corpus.
        """
        return filter(self._keep, self._items()) if self._keep else self._items()

    def _items(self) -> Iterator[Chunk | Problem]:
        seen = SeenIds()
        try:
            for file in self._files():
                if isinstance(file, Problem):
                    yield file
                    continue
                try:
                    for draft in self._read(file):
                        yield draft if isinstance(draft, Problem) else self._finish(draft, seen)
                except OSError as error:
                    yield Problem(file.label, f"cannot be read: {why(error)}")
        finally:
            seen.close()

    def _files(self) -> Iterator[CorpusFile | Problem]:
        for source in self._sources:
            if isinstance(source, Tree):
                yield from source.files()
            else:
                yield source

    def _read(self, file: CorpusFile) -> Iterator[Draft | Problem]:
        match file.format:
            case "v4":
                return read_v4(file, self._min_tokens)
            case "jsonl":
                return read_jsonl(file)
            case "parquet":
                return read_parquet(file)
            case "plain":
                return read_plain(file, self._chunk_chars)

    def _finish(self, draft: Draft, seen: SeenIds) -> Chunk | Problem:
        item = finish(draft, self._max_chunk_bytes)
        if isinstance(item, Problem) or draft.given is None:
            return item
        known = seen.add(item, draft.path, draft.ordinal)
        if known is None:
            return item
        first = place(known.path, known.ordinal)
        if known.same_text:
            return Problem(draft.where, f"repeats id {draft.given!r} of {first}", "skipped", item.id)
        return Problem(
            draft.where, f"id {draft.given!r} already stands for another text at {first}", id=item.id
        )


def open_corpus(
    paths: Sequence[Path],
    *,
    root: Path | None,
    settings: Settings,
    min_tokens: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    chunk_chars: int = CHUNK_CHARS,
) -> Corpus:
    """A corpus of files and folders.

    Labels (payload paths, and so ids) are relative to `root`, else to the parent of each path. A path named
    here is read though an ignore rule matches it. `include` and `exclude` are gitignore-style patterns over
    paths within a folder. `chunk_chars` is the capacity of a chunk cut from a plain file.

    Raises CorpusError if a path cannot be read at all, or if there is nothing to read.
    """
    if chunk_chars < 1:
        raise CorpusError(f"a chunk of {chunk_chars} characters is none; ask for 1 or more")
    labels = _labels(paths, root)
    sources: list[CorpusFile | Tree] = []
    for path, label in labels.items():
        if path.is_dir():
            apart = frozenset(str(other) for other in labels if other != path)
            sources.append(Tree(path, label, tuple(include), tuple(exclude), apart))
        else:
            sources.append(_named_file(path, label))
    corpus = Corpus(tuple(sources), settings.max_chunk_bytes, min_tokens, chunk_chars)
    if not any(isinstance(file, CorpusFile) for file in corpus._files()):
        said = ", ".join(str(path) for path in paths)
        raise CorpusError(f"nothing to read in {said or 'no path'}; looked for {_LOOKED_FOR}")
    return corpus


def open_pipe(stream: BinaryIO, *, name: str, settings: Settings) -> Corpus:
    """A corpus of JSON Lines from a stream that can be read once; gzip is read through.

    Waits for its first bytes. What is read is spooled in the data directory until the corpus is dropped.
    Chunks without an id are named by `name` and their line, as those of a file of that name would be.

    Raises CorpusError if nothing comes.
    """
    if not name or not name.isprintable() or name.startswith("/"):
        raise CorpusError(f"{name!r} names no corpus; choose a name like notes.jsonl")
    pipe = Pipe(stream, settings.data_dir / "spool")
    if not pipe.begins(2):
        raise CorpusError("nothing came on standard input; did the command before the pipe fail?")
    file = PipedFile(Path(PIPE_LABEL), name, "jsonl", pipe.size, pipe)
    return Corpus((file,), settings.max_chunk_bytes, None, CHUNK_CHARS)


def _labels(paths: Sequence[Path], root: Path | None) -> dict[Path, str]:
    """Resolved paths with the names by which their chunks go, in the order of those."""
    base = root.resolve() if root else None
    labels: dict[Path, str] = {}
    for given in paths:
        try:
            path = given.resolve(strict=True)
        except OSError as error:
            raise CorpusError(f"{printable(str(given))}: {why(error)}; name a file or folder") from None
        except RuntimeError:
            raise CorpusError(f"{given}: a loop of symbolic links") from None
        if base and not path.is_relative_to(base):
            raise CorpusError(f"{path} is not within the root {base}; choose a --root above both")
        label = path.relative_to(base or path.parent).as_posix()
        label = "" if label == "." else label
        try:
            label.encode()
        except UnicodeEncodeError:
            raise CorpusError(f"{printable(str(path))}: the name is not valid UTF-8; rename it") from None
        for other, name in labels.items():
            if name == label and other != path:
                raise CorpusError(
                    f"{other} and {path} would both be called {label!r}; submit them with --root "
                    f"{os.path.commonpath([other, path])}"
                )
        labels[path] = label
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _named_file(path: Path, label: str) -> CorpusFile:
    """A file submitted by its own path. Raises CorpusError if it holds no chunks and is no text."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CorpusError(f"{path}: neither a regular file nor a folder")
        with raw_bytes(path) as descriptor:
            head = os.read(descriptor, 8 * 1024)
        # By name, JSON is data; named by a person, it is meant to be chunks.
        kind: Format | None = "v4" if path.suffix.lower() == ".json" else format_of(path.name)
        file = CorpusFile(path, label, kind or "plain", status.st_size)
        if file.format == "v4":
            load_v4(file)
        elif file.format == "parquet":
            check_parquet(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {why(error)}") from None
    if file.format == "plain":
        reason = unfit(path.name, status.st_size) or ("binary file" if is_binary(head) else None)
        if reason:
            raise CorpusError(f"{path}: {reason}; looked for {_LOOKED_FOR}")
    return file
