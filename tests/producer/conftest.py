"""What the producer's tests share: settings apart from the environment, and a short way to read a corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from producer.corpus import open_corpus
from producer.problem import Problem
from registry.chunks import Chunk
from registry.settings import Settings


@dataclass
class Pass:
    """All items of one pass, apart by kind."""

    items: list[Chunk | Problem]

    @property
    def chunks(self) -> list[Chunk]:
        return [item for item in self.items if isinstance(item, Chunk)]

    @property
    def texts(self) -> list[str]:
        return [chunk.text for chunk in self.chunks]

    @property
    def rejected(self) -> list[Problem]:
        return [item for item in self.items if isinstance(item, Problem) and item.severity == "rejected"]

    @property
    def skipped(self) -> list[Problem]:
        return [item for item in self.items if isinstance(item, Problem) and item.severity == "skipped"]

    @property
    def paths(self) -> list[str]:
        """Payload paths, each once, in order."""
        return list(dict.fromkeys(chunk.payload["path"] for chunk in self.chunks))


Read = Callable[..., Pass]


@pytest.fixture
def settings() -> Settings:
    return Settings(_env_file=None)


@pytest.fixture
def read(settings: Settings) -> Read:
    def read(*paths: Path, settings: Settings = settings, root: Path | None = None, **options: Any) -> Pass:
        return Pass(list(open_corpus(paths, root=root, settings=settings, **options).items()))

    return read
