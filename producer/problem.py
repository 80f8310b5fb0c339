"""What a corpus could not give, or left out on purpose, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["rejected", "skipped"]


@dataclass(frozen=True)
class Problem:
    """One thing of a corpus that does not become a chunk."""

    #: `file.jsonl:1234`, `doc_chunks.json[17]`, or the path of a file or folder, as payloads write it.
    where: str
    reason: str
    #: `rejected`: a chunk (or a file of them) that should have been there and is not: a dead letter.
    #: `skipped`: left out by a rule; counted, nothing to mend.
    severity: Severity = "rejected"
    #: The chunk's id, where it got as far as having one.
    id: str | None = None
