"""A corpus file: where it is, how it is called, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

from producer.draft import JSON_LINES_NAME

Format = Literal["v4", "jsonl", "parquet", "plain"]

#: What V4 wrote beside its chunk files.
V4_SUMMARY = "_processing_summary.json"
V4_CHUNKS = "_chunks.json"
PARQUET = ".parquet"

#: Files that are not text, by extension; the others are looked into.
BINARY_EXTENSIONS = frozenset({
    ".7z", ".a", ".avi", ".avif", ".bin", ".bmp", ".bz2", ".class", ".dat", ".db", ".dll", ".dmg", ".doc",
    ".docx", ".dylib", ".eot", ".exe", ".flac", ".gif", ".gz", ".ico", ".jar", ".jpeg", ".jpg", ".lz4",
    ".mkv", ".mov", ".mp3", ".mp4", ".npy", ".npz", ".o", ".odt", ".ogg", ".onnx", ".otf", ".pdf",
    ".pickle", ".pkl", ".png", ".ppt", ".pptx", ".pt", ".pth", ".pyc", ".pyd", ".pyo", ".rar", ".safetensors",
    ".so", ".sqlite", ".tar", ".tgz", ".tif", ".tiff", ".ttf", ".wasm", ".wav", ".webm", ".webp", ".whl",
    ".woff", ".woff2", ".xls", ".xlsx", ".xz", ".zip", ".zst",
})  # fmt: skip
#: JSON that is not chunks is data, not text.
DATA_EXTENSIONS = frozenset({".json", ".geojson", ".ipynb", ".svg", ".map"})
#: A whole file is held in memory while it is cut, its syntax tree with it. Bytes.
MAX_PLAIN_BYTES = 16 << 20
#: A V4 chunk file is parsed as a whole and takes some five times its size in memory. Bytes.
MAX_V4_BYTES = 256 << 20


@dataclass(frozen=True)
class CorpusFile:
    """One file to read."""

    path: Path
    #: The name chunks carry as `path`: relative, posix, the same wherever the corpus is read from.
    label: str
    format: Format
    size: int

    def open(self) -> BufferedReader:
        """Its bytes, from the beginning. Raises OSError."""
        return self.path.open("rb")


def format_of(name: str) -> Format | None:
    """How a file of that name is read; None for JSON that holds no chunks, by its name."""
    if name.endswith(V4_CHUNKS):
        return "v4"
    if JSON_LINES_NAME.search(name):
        return "jsonl"
    if name.lower().endswith(PARQUET):
        return "parquet"
    return None if os.path.splitext(name)[1].lower() in DATA_EXTENSIONS else "plain"


def unfit(name: str, size: int) -> str | None:
    """Why a file found in a folder is left out, by its name and size; None where it is read."""
    if name.endswith(V4_SUMMARY):
        return "V4 processing summary"
    kind = format_of(name)
    if kind is None:
        return "JSON or other data, not chunks"
    if kind == "plain":
        if os.path.splitext(name)[1].lower() in BINARY_EXTENSIONS:
            return "binary file"
        if size > MAX_PLAIN_BYTES:
            return f"file of {size} bytes is over the limit of {MAX_PLAIN_BYTES} for plain text"
    return None


@contextmanager
def raw_bytes(path: Path) -> Iterator[int]:
    """A descriptor to read from, which does not hang on a pipe that took the file's place."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def why(error: OSError) -> str:
    """The system's words, without the path."""
    return error.strerror or type(error).__name__
