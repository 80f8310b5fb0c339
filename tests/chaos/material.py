"""The corpus of a run: real source code and prose, and chunks that no encoder can take."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from worker.encoders.fake import POISON_KILL, POISON_NAN, POISON_OOM, POISON_RAISE, POISON_SHAPE

ROOT = Path(__file__).parents[2]
#: What is copied from: code and prose of this project.
_FROM = ("registry/*.py", "ledger/*.py", "store/*.py", "producer/*.py", "docs/*.md", "ledger/lua/*.lua")
FILES = 40
#: So many of them stand a second time, under another name.
COPIES = 5
NOTES = 40
#: So many further notes have a text that another one has, which may be poison.
ECHOES = 8
#: Share of corpora with a chunk that kills whoever embeds it.
KILLERS = 0.3
POISONS = (POISON_RAISE, POISON_NAN, POISON_SHAPE, POISON_OOM)


class Material:
    """Files of a corpus, chosen, poisoned and changed by a seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(f"corpus {seed}")
        self._tree, self._notes = folder / "tree", folder / "notes.jsonl"
        self._tree.mkdir(parents=True)
        found = sorted(path for pattern in _FROM for path in ROOT.glob(pattern))
        self._spare = self._rng.sample(found, len(found))
        for _ in range(FILES):
            self._add()
        self._copy()
        self._write_notes(self._rng.randint(1, 4))

    @property
    def paths(self) -> list[Path]:
        """What is submitted."""
        return [self._tree, self._notes]

    def change(self) -> None:
        """Remove some files, edit some, add and copy some; other notes, other poison."""
        standing = self._rng.sample(sorted(self._tree.iterdir()), 24)
        for path in standing[:8]:
            path.unlink()
        for path in standing[8:]:
            path.write_text(f"{path.read_text()}\n\n# Changed: {self._rng.random()}.\n")
        for _ in range(8):
            self._add()
        self._copy()
        self._write_notes(self._rng.randint(1, 4))

    def _add(self) -> None:
        source = self._spare.pop()
        shutil.copyfile(source, self._tree / "-".join(source.relative_to(ROOT).parts))

    def _copy(self) -> None:
        for source in self._rng.sample(sorted(self._tree.iterdir()), COPIES):
            # Read before its original, or after it.
            prefix = self._rng.choice(("a", "z"))
            shutil.copyfile(source, self._tree / f"{prefix}-{self._rng.randrange(10**6)}-{source.name}")

    def _write_notes(self, poisoned: int) -> None:
        """Notes, some of them poison, some with another's text."""
        bad = {i: self._rng.choice(POISONS) for i in self._rng.sample(range(NOTES), poisoned)}
        if self._rng.random() < KILLERS:
            # One only: each ends three processes of every model, one after another.
            bad[min(bad)] = POISON_KILL
        texts = []
        for i in range(NOTES):
            words = "a word " * self._rng.randrange(60)
            texts.append(f"note {i}, version {self._rng.randrange(3)}: {words}{bad.get(i, '')}")
        texts += self._rng.sample([text for text in texts if POISON_KILL not in text], ECHOES)
        with self._notes.open("w") as out:
            for i, text in enumerate(texts):
                out.write(json.dumps({"id": f"note-{i}", "text": text, "metadata": {"n": i}}) + "\n")
