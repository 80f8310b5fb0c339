"""The ONNX encoder against plain SentenceTransformer.encode: same weights, same texts, one run.

    python -m benchmarks.encoders [--corpus chunks|functions] [--chunks 1000] [--repeats 3] [--json FILE]
    python -m benchmarks.encoders --variant int8 […]

Both get the same threads and the same truncation. They take turns on slices of the corpus, so that whatever
else the machine does hits both; slices are cut from the corpus sorted by length, which is the order in which
each of them would work through it anyway. Ends with 1 if any chunk's two vectors differ.

With a variant, the ONNX encoder is compared with itself in that variant instead, whose vectors do differ.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.chunks import stdlib_chunks
from benchmarks.functions import stdlib_functions
from benchmarks.report import at_least, save, show, show_aims
from registry.codecs import Dense
from registry.models import model
from registry.settings import Settings, load_settings
from worker.encoders.device import thread_count
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.weights import locate

ONNX = "qdrant-minilm-onnx"
CORPORA: dict[str, Callable[[int], list[str]]] = {"chunks": stdlib_chunks, "functions": stdlib_functions}
#: Worst cosine between the two vectors of a chunk that still counts as agreement.
MIN_COSINE = 0.9999
#: Batch sizes of SentenceTransformer.encode that are tried; 32 is its default.
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)
DEFAULT_BATCH = 32
#: Every batch size is tried on this many chunks; only the best goes on to the full measurement.
TRIAL_CHUNKS = 96
#: Chunks of a slice: a multiple of every batch size but the largest.
SLICE = 128

Floats = npt.NDArray[np.float32]
Run = Callable[[list[str]], Floats]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--corpus",
        choices=CORPORA,
        default="chunks",
        help="chunks as the producer cuts them (default), or single functions, which are shorter",
    )
    parser.add_argument("--chunks", type=int, default=1000, help="texts to embed (default 1000)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repetitions (default 3)")
    parser.add_argument("--variant", choices=model(ONNX).variants, help="compare with this variant instead")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    settings = load_settings()
    texts = CORPORA[options.corpus](options.chunks)
    if options.variant:
        return _compare_variant(options.variant, settings, texts, options)
    ours, theirs = _ours(settings), _theirs(settings)
    best = _best_batch(theirs, texts[:TRIAL_CHUNKS])
    contenders: dict[str, Run] = {
        ONNX: ours,
        f"SentenceTransformer.encode, batch {DEFAULT_BATCH} (default)": lambda t: theirs(t, DEFAULT_BATCH),
    }
    if best != DEFAULT_BATCH:
        contenders[f"SentenceTransformer.encode, batch {best} (best)"] = lambda t: theirs(t, best)
    seconds, vectors = _interleaved(contenders, texts, options.repeats)
    names = list(contenders)
    rows = [
        (name, len(texts) / statistics.median(took), len(texts) / min(took), _ratio(took, seconds[names[0]]))
        for name, took in seconds.items()
    ]
    show(
        f"{len(texts)} {options.corpus}, {thread_count(settings)} threads",
        ["encoder", "chunks/s (median)", "chunks/s (best)", "ONNX is faster by"],
        rows,
    )
    cosine = min(float((vectors[names[0]] * vectors[name]).sum(axis=1).min()) for name in names[1:])
    aims = [
        at_least("times as fast as sentence-transformers at its default", rows[1][3], 1.5),
        at_least("worst cosine to sentence-transformers", cosine, MIN_COSINE),
    ]
    show_aims(aims)
    save(
        options.json,
        {
            "corpus": options.corpus,
            "chunks": len(texts),
            "threads": thread_count(settings),
            "best_batch": best,
            "seconds": seconds,
            "ratio_to_default": rows[1][3],
            "ratio_to_best": rows[-1][3],
            "min_cosine": cosine,
        },
        aims,
    )
    return 0 if cosine >= MIN_COSINE else 1


def _compare_variant(variant: str, settings: Settings, texts: list[str], options: argparse.Namespace) -> int:
    contenders = {ONNX: _ours(settings), f"{ONNX}, {variant}": _ours(settings, variant)}
    seconds, vectors = _interleaved(contenders, texts, options.repeats)
    (plain, took), (name, other) = seconds.items()
    cosines = (vectors[plain] * vectors[name]).sum(axis=1)
    ratio = _ratio(took, other)
    show(
        f"{len(texts)} {options.corpus}, {thread_count(settings)} threads",
        ["encoder", "chunks/s (median)", "times as fast"],
        [
            (plain, len(texts) / statistics.median(took), 1.0),
            (name, len(texts) / statistics.median(other), ratio),
        ],
    )
    print(f"cosine to {plain}: worst {cosines.min():.4f}, mean {cosines.mean():.4f}")
    save(
        options.json,
        {
            "corpus": options.corpus,
            "chunks": len(texts),
            "threads": thread_count(settings),
            "variant": variant,
            "seconds": seconds,
            "ratio": ratio,
            "min_cosine": float(cosines.min()),
            "mean_cosine": float(cosines.mean()),
        },
    )
    return 0


def _ratio(took: list[float], base: list[float]) -> float:
    """Median over the repetitions of one contender's time to the other's in the same repetition."""
    return statistics.median(a / b for a, b in zip(took, base, strict=True))


def _ours(settings: Settings, variant: str = "") -> Run:
    encoder = load_encoder(ONNX, "", settings, ["dense"], variant=variant)
    warm_up(encoder, ["dense"])
    lock = threading.Lock()

    def run(texts: list[str]) -> Floats:
        part = encode(encoder, texts, "document", ["dense"], device_lock=lock)
        dense = part.vectors["dense"]
        assert isinstance(dense, Dense)
        return dense.values.astype(np.float32, copy=False)

    return run


def _theirs(settings: Settings) -> Callable[[list[str], int], Floats]:
    import torch
    from sentence_transformers import SentenceTransformer

    spec = model("all-miniLM-l6")
    torch.set_num_threads(thread_count(settings))
    loaded: Any = SentenceTransformer(str(locate(spec, settings).path), device=settings.device or None)
    loaded.max_seq_length = spec.max_tokens

    def run(texts: list[str], batch_size: int) -> Floats:
        values: Floats = loaded.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return values

    return run


def _best_batch(theirs: Callable[[list[str], int], Floats], texts: list[str]) -> int:
    theirs(texts[:32], DEFAULT_BATCH)
    took = dict.fromkeys(BATCH_SIZES, float("inf"))
    # Twice, the better one counts: a disturbance in one trial must not choose the size.
    for size in BATCH_SIZES * 2:
        begun = time.perf_counter()
        theirs(texts, size)
        took[size] = min(took[size], time.perf_counter() - begun)
    return min(took, key=lambda size: took[size])


def _interleaved(
    contenders: dict[str, Run], texts: list[str], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Floats]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    vectors: dict[str, Floats] = {}
    ordered = sorted(texts, key=len)
    slices = [ordered[i : i + SLICE] for i in range(0, len(ordered), SLICE)]
    for _ in range(repeats):
        took = dict.fromkeys(contenders, 0.0)
        found: dict[str, list[Floats]] = {name: [] for name in contenders}
        for some in slices:
            for name, run in contenders.items():
                begun = time.perf_counter()
                found[name].append(run(some))
                took[name] += time.perf_counter() - begun
        for name in contenders:
            seconds[name].append(took[name])
            vectors[name] = np.concatenate(found[name])
    return seconds, vectors


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
