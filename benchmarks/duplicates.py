"""A corpus of which a share are copies, against one of as many chunks that are all different.

    python -m benchmarks.duplicates [--chunks 1000] [--share 0.3] [--rounds 3] [--window 256] [--json FILE]

Both are cut into windows and batches as the producer cuts them, and go through one worker's encoder and
vector cache; a round takes each from an empty cache, in turn. Copies stand anywhere in the corpus.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.functions import stdlib_functions
from benchmarks.report import save, show
from producer.batching import cut_batches, windows
from registry.chunks import Chunk, chunk_id
from registry.settings import load_settings
from worker.encoders.base import Encoder
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.vector_cache import VectorCache

MODEL = "qdrant-minilm-onnx"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=1000, help="chunks of each corpus (default 1000)")
    parser.add_argument("--share", type=float, default=0.3, help="share that are copies (default 0.3)")
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds (default 3)")
    parser.add_argument("--window", type=int, default=256, help="chunks read ahead (default 256)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    different = stdlib_functions(options.chunks)
    copied = with_copies(different, options.share)
    encoder = load_encoder(MODEL, "", load_settings(), ["dense"])
    warm_up(encoder, ["dense"])
    seconds: dict[str, list[float]] = {"different": [], "copied": []}
    counts: dict[str, tuple[int, int]] = {}
    for _ in range(options.rounds):
        for name, texts in (("different", different), ("copied", copied)):
            begun = time.perf_counter()
            counts[name] = embed(encoder, texts, options.window)
            seconds[name].append(time.perf_counter() - begun)
    ratio = statistics.median(c / d for c, d in zip(seconds["copied"], seconds["different"], strict=True))
    show(
        f"{options.chunks} functions through {MODEL}; of the second corpus {options.share:.0%} are copies",
        ["corpus", "through the encoder", "tokens through it", "seconds (median)", "of the first"],
        [
            ("all different", *counts["different"], statistics.median(seconds["different"]), 1.0),
            ("with copies", *counts["copied"], statistics.median(seconds["copied"]), ratio),
        ],
    )
    save(options.json, {**vars(options), "seconds": seconds, "counts": counts, "ratio": ratio})
    return 0


def with_copies(texts: Sequence[str], share: float, seed: int = 5) -> list[str]:
    """As many texts, of which `share` are copies of others, in a random order."""
    random_ = random.Random(seed)
    kept = list(texts[: len(texts) - int(len(texts) * share)])
    mixed = kept + random_.choices(kept, k=len(texts) - len(kept))
    random_.shuffle(mixed)
    return mixed


def embed(encoder: Encoder, texts: Sequence[str], window: int) -> tuple[int, int]:
    """A corpus through one worker; the texts and tokens that went through its encoder."""
    settings = load_settings(window_chunks=window)
    through = partial(encode, encoder, side="document", kinds=["dense"], device_lock=threading.Lock())
    cache = VectorCache(settings.vector_cache_bytes)
    passed = tokens = 0
    for each in windows((Chunk(chunk_id(str(i)), text) for i, text in enumerate(texts)), settings):
        for batch in cut_batches(each.chunks, settings):
            encoded = cache.encode([chunk.text for chunk in batch], ["dense"], {}, through)
            passed += len(encoded.fresh)
            tokens += int(encoded.fresh_part.tokens_kept.sum())
    return passed, tokens


if __name__ == "__main__":
    sys.exit(main())
