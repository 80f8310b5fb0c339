"""Real chunks to measure with: the standard library's source as the producer cuts it."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

from producer.corpus import open_corpus
from registry.chunks import Chunk
from registry.settings import load_settings

#: Packages that are on every machine and large enough together.
PACKAGES = ("asyncio", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest")


def stdlib_chunks(count: int, seed: int = 7) -> list[str]:
    """`count` chunks, the same for the same interpreter, in a random order.

    Raises ValueError if the packages have fewer.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [library / name for name in PACKAGES]
    corpus = open_corpus(paths, root=library, settings=load_settings(), exclude=["test/"])
    found = [item.text for item in corpus.items() if isinstance(item, Chunk)]
    if len(found) < count:
        raise ValueError(f"these packages have {len(found)} chunks, fewer than {count}")
    return random.Random(seed).sample(found, count)
