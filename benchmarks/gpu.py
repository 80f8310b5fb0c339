"""What the models reach of a GPU: tokens and chunks per second, and which part of the device's peak that is.

    python -m benchmarks.gpu [--models NAME,…] [--tokens 128,256,512,2048] [--seconds 5] [--json FILE]
    python -m benchmarks.gpu --device cpu --tiny

The three large models have their true layers and widths with seeded random weights, made in a temporary
directory (up to 8 GB), and a small vocabulary, as embeddings are only looked up; the MiniLM pair has its real
weights. Texts are of words that are one token each, their lengths spread by a quarter around the one asked
for. They go through as in a worker: two threads take batches through `encode`, one of them at a time on the
device, and pack what comes out.

- The peak is that of a large product in bfloat16 by torch, measured at the start (float32 on a CPU).
- `of peak`: operations of the tokens that carry text (`benchmarks.flops`) for each second of wall time.
- `busy`: the part of the time in which something ran on the device, from CUDA's own record of a run that is
  not the timed one; on a CPU the part in which a forward pass ran.
- `tokeniser`: the time one thread takes to prepare the texts, as a part of the wall time; it overlaps.
- `× padded`: the time the same texts take with padding between them, over ours without; where the device
  needs none (`V5_ATTENTION`), and with two layers on a CPU, text by text.
- `× eager`: how many times as fast a micro-batch is with compiled layers, as the worker's own trial found
  (`V5_COMPILE`); the rows are measured with what it decided.
- sentence-transformers gets the same texts in one call, at its default batch size and at its best of 8 to
  256, where it takes the model.

Ends with 2 where there is no GPU. `--device cpu --tiny` runs all of it with two layers each, to see it work.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.flops import forward_flops
from benchmarks.report import at_least, save, show, show_aims
from registry.codecs import Part, pack_part
from registry.models import Architecture, OutputKind, model
from registry.settings import Settings, load_settings
from tests.checkpoints import bge_m3, jina_code, jina_v4
from tests.checkpoints.material import WORDS
from worker.embedder import EmbedWorker
from worker.encoders.base import Encoder
from worker.encoders.compile_trial import compile_if_faster
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.encoders.probe import probe
from worker.weights import locate

CODE, BGE, V4 = "jina-code-embeddings-1.5b", "bge-m3", "jina-embeddings-v4"
ONNX, MINILM = "qdrant-minilm-onnx", "all-miniLM-l6"
#: Models, the number formats they run in beside their own, and the sets of outputs that are measured.
CASES: dict[str, tuple[tuple[str, ...], tuple[tuple[OutputKind, ...], ...]]] = {
    CODE: (("",), (("dense",),)),
    BGE: (("",), (("dense",), ("dense", "sparse", "multi"))),
    V4: (("",), (("dense",), ("dense", "multi"))),
    ONNX: (("", "float16"), (("dense",),)),
    MINILM: (("",), (("dense",),)),
}
CHECKPOINTS: dict[str, ModuleType] = {CODE: jina_code, BGE: bge_m3, V4: jina_v4}
#: Those that SentenceTransformer loads without code of their own.
TAKEN = (CODE, BGE, MINILM)
#: Positions that a checkpoint of true size is built with. Tokens.
POSITIONS = 4096
#: Room for the prefix and the special tokens.
SPARE_TOKENS = 24
BATCH_SIZES = (8, 16, 32, 64, 128, 256)
DEFAULT_BATCH = 32
#: Texts of a run that shows how many fill the time asked for, and the most of those.
PROBE_TEXTS, MOST_TEXTS = 64, 50_000
#: Threads of a worker.
THREADS = EmbedWorker.threads
#: Side of the product whose speed is the peak.
SIDE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Run:
    """Texts through a worker's loop."""

    seconds: float
    forward_seconds: float
    useful_tokens: int
    padded_tokens: int


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default=",".join(CASES), help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument(
        "--tokens", default="128,256,512,2048", help="of a text, where the model takes so many"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="that a measurement is to take (default 5)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of two layers")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    wanted = options.models.split(",")
    if unknown := sorted(set(wanted) - set(CASES)):
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.device == "cpu" and not options.tiny:
        parser.error("models of true size take a CPU hours; add --tiny")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks.gpu: torch finds no CUDA device; run it on a machine with a GPU and the extra [gpu], "
            "or try it with --device cpu --tiny",
            file=sys.stderr,
        )
        return 2
    peak = measured_peak(options.device)
    lengths = [int(count) for count in options.tokens.split(",")]
    rows = [row for name in wanted for row in _model(name, lengths, peak, options)]
    device = torch.cuda.get_device_name() if options.device == "cuda" else "this CPU, two layers each"
    columns = ("outputs", "tokens", "tokens/s", "chunks/s", "of peak", "busy", "padding", "tokeniser")
    peers = ("times_padded", "times_eager", "times_default", "times_best", "best_batch")
    show(
        f"{device}; its peak {peak / 1e12:.3g} TFLOP/s",
        ["model", *columns, "× padded", "× eager", "× ST default", "× ST best", "its batch"],
        [tuple(row.get(key, "-") for key in ("model", *columns, *peers)) for row in rows],
    )
    aims = [] if options.tiny else _aims(rows)
    show_aims(aims)
    save(options.json, {"device": device, "peak_flops": peak, "tiny": options.tiny, "rows": rows}, aims)
    return 0


def measured_peak(device: str) -> float:
    """Operations per second of a product of two large square matrices, the best of some."""
    side, dtype = SIDE[device], torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        begun = time.perf_counter()
        for _ in range(5):
            torch.matmul(a, b)
        _wait(device)
        best = min(best, (time.perf_counter() - begun) / 5)
    return 2 * side**3 / best


def _model(
    name: str, lengths: Sequence[int], peak: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of one model."""
    dtypes, outputs = CASES[name]
    with tempfile.TemporaryDirectory(prefix="v5-gpu-") as scratch:
        path, sizes, limit = _checkpoint(name, Path(scratch) / "weights", tiny=options.tiny)
        for dtype in dtypes if options.device == "cuda" else dtypes[:1]:
            given: dict[str, Any] = {"weights": {name: path}, "fake_weights": True} if path else {}
            given |= {"device": options.device, "data_dir": Path(scratch) / "data", "dtype": dtype}
            settings = load_settings(attention="unpadded" if options.device == "cpu" else "auto", **given)
            encoder = load_encoder(name, "", settings, ["dense"])
            gain = _settled(encoder, outputs[0], options)
            unpadded = bool(encoder.numerics.attention)
            rows = []
            try:
                for tokens in lengths:
                    if tokens * 5 // 4 + SPARE_TOKENS <= limit or tokens == limit:
                        rows += [_ours(encoder, kinds, tokens, sizes, peak, options) for kinds in outputs]
            finally:
                encoder.close()
                del encoder
                gc.collect()
            if unpadded:
                _add_padded(name, load_settings(attention="padded", **given), rows, options)
            if name in TAKEN:
                _add_theirs(name, path or locate(model(name), settings).path, rows, options)
            for row in rows:
                row.pop("texts")
                yield {**row, **gain, "model": f"{name} {dtype}".strip()}


def _settled(encoder: Encoder, kinds: Sequence[OutputKind], options: argparse.Namespace) -> dict[str, float]:
    """What a worker finds out at its first start: are layers compiled, how large are micro-batches."""
    compile_if_faster(encoder, kinds)
    if options.device == "cuda":
        probe(encoder, kinds)
    return {"times_eager": encoder.layers.gain} if encoder.layers and encoder.layers.gain else {}


def _checkpoint(name: str, path: Path, *, tiny: bool) -> tuple[Path | None, Architecture, int]:
    """Where the made-up weights are, their sizes, and the longest text they take in tokens; no path for the
    models whose weights are real."""
    spec = model(name)
    builder = CHECKPOINTS.get(name)
    if builder is None:
        return None, spec.architecture, spec.max_tokens
    if tiny:
        builder.build(path)
        sizes = replace(spec.architecture, layers=builder.LAYERS, ffn=builder.FFN)
        return path, sizes, getattr(builder, "MAX_TOKENS", POSITIONS)
    known: dict[str, Any] = {
        "LAYERS": spec.architecture.layers,
        "FFN": spec.architecture.ffn,
        "MAX_TOKENS": POSITIONS,
    }
    with patch.multiple(builder, **{key: value for key, value in known.items() if hasattr(builder, key)}):
        builder.build(path)
    return path, spec.architecture, POSITIONS


def texts_of(name: str, tokens: int, count: int) -> list[str]:
    """`count` texts of words that are a token each, a quarter more or fewer than `tokens` of them."""
    draw = random.Random(tokens)
    words = jina_v4.WORDS if name == V4 else WORDS
    return [
        " ".join(draw.choices(words, k=draw.randint(tokens * 3 // 4, tokens * 5 // 4))) for _ in range(count)
    ]


def _ours(
    encoder: Encoder,
    kinds: Sequence[OutputKind],
    tokens: int,
    sizes: Architecture,
    peak: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    probe = texts_of(encoder.model, tokens, PROBE_TEXTS)
    through_worker(encoder, probe, kinds)
    rate = PROBE_TEXTS / through_worker(encoder, probe, kinds).seconds
    texts = texts_of(encoder.model, tokens, max(PROBE_TEXTS, min(MOST_TEXTS, int(rate * options.seconds))))
    run = through_worker(encoder, texts, kinds)
    begun = time.perf_counter()
    lengths = encoder.prepare(texts, "document").tokens_kept
    tokenising = time.perf_counter() - begun
    flops = sum(forward_flops(sizes, int(length)) for length in lengths)
    return {
        "outputs": ", ".join(kinds),
        "tokens": tokens,
        "texts": texts,
        "chunks": len(texts),
        "tokens/s": run.useful_tokens / run.seconds,
        "chunks/s": len(texts) / run.seconds,
        "of peak": flops / run.seconds / peak,
        "busy": _busy(encoder, texts, kinds, run, options.device),
        "padding": 1 - run.useful_tokens / run.padded_tokens,
        "tokeniser": tokenising / run.seconds,
    }


def through_worker(encoder: Encoder, texts: Sequence[str], kinds: Sequence[OutputKind]) -> Run:
    """Batches as the producer cuts them, of texts of about one length, through a worker's threads."""
    ordered = sorted(texts, key=len)
    settings = load_settings()
    size = max(1, min(settings.batch_chunks, settings.batch_bytes // max(1, len(ordered[-1]))))
    lock = threading.Lock()

    def embed(at: int) -> Part:
        part = encode(encoder, ordered[at : at + size], "document", kinds, device_lock=lock)
        if part.rejected:
            raise RuntimeError(f"{encoder.model}: {next(iter(part.rejected.values()))}")
        pack_part(part)
        return part

    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        notes = [part.notes for part in pool.map(embed, range(0, len(ordered), size))]
    seconds = time.perf_counter() - begun
    return Run(
        seconds,
        sum(note["forward_seconds"] for note in notes),
        sum(note["useful_tokens"] for note in notes),
        sum(note["padded_tokens"] for note in notes),
    )


def _busy(
    encoder: Encoder, texts: Sequence[str], kinds: Sequence[OutputKind], timed: Run, device: str
) -> float:
    """The part of the time in which the device ran something."""
    if device == "cpu":
        return timed.forward_seconds / timed.seconds
    from torch.profiler import ProfilerActivity, profile

    # A record of some seconds is enough, and one of many is slow to read.
    some = texts[: max(PROBE_TEXTS, int(len(texts) / max(1.0, timed.seconds)))]
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run = through_worker(encoder, some, kinds)
        _wait(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in record.events()
        if event.device_type.name == "CUDA"
    )
    return covered(spans) / 1e6 / run.seconds


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals, which are sorted by their beginnings."""
    total, end = 0.0, float("-inf")
    for begin, last in spans:
        total += max(0.0, last - max(begin, end))
        end = max(end, last)
    return total


def _add_padded(
    name: str, settings: Settings, rows: list[dict[str, Any]], options: argparse.Namespace
) -> None:
    """Hold the rows against the same model with padding between the texts, settled as it is without."""
    encoder = load_encoder(name, "", settings, ["dense"])
    _settled(encoder, CASES[name][1][0], options)
    try:
        for row in rows:
            kinds: list[Any] = row["outputs"].split(", ")
            through_worker(encoder, row["texts"][:PROBE_TEXTS], kinds)
            seconds = through_worker(encoder, row["texts"], kinds).seconds
            row["times_padded"] = seconds * row["chunks/s"] / len(row["texts"])
    finally:
        encoder.close()
        del encoder
        gc.collect()


def _add_theirs(name: str, path: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Hold the dense rows against SentenceTransformer.encode, same texts, same number format."""
    from sentence_transformers import SentenceTransformer

    spec = model(name)
    dtype = getattr(torch, spec.gpu_dtype) if options.device == "cuda" else torch.float32
    loaded: Any = SentenceTransformer(
        str(path), device=options.device, local_files_only=True, model_kwargs={"dtype": dtype}
    )
    prompt = spec.prompts[spec.default_task].document
    loaded.max_seq_length = min(spec.max_tokens, POSITIONS, loaded.max_seq_length or POSITIONS)

    def seconds(texts: list[str], batch: int) -> float:
        try:
            _wait(options.device)
            begun = time.perf_counter()
            loaded.encode(
                texts, batch_size=batch, prompt=prompt, normalize_embeddings=True, show_progress_bar=False
            )
            return time.perf_counter() - begun
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return float("inf")

    for row in (row for row in rows if row["outputs"] == "dense"):
        texts = row["texts"]
        trial = texts[: max(PROBE_TEXTS, len(texts) // 4)]
        seconds(trial[:DEFAULT_BATCH], DEFAULT_BATCH)
        tried = {size: seconds(trial, size) for size in BATCH_SIZES}
        best = min(tried, key=lambda size: tried[size])
        default = seconds(texts, DEFAULT_BATCH)
        fastest = default if best == DEFAULT_BATCH else min(default, seconds(texts, best))
        row["times_default"] = default * row["chunks/s"] / len(texts)
        row["times_best"] = fastest * row["chunks/s"] / len(texts)
        row["best_batch"] = best


def _aims(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """What was promised of a GPU, as far as it was measured."""

    def of(name: str, key: str, tokens: range, outputs: str = "dense") -> list[float]:
        return [
            row[key]
            for row in rows
            if row["model"] == name and row["outputs"] == outputs and row["tokens"] in tokens
        ]

    long = range(256, POSITIONS)
    aims = []
    for name in (CODE, BGE):
        if found := of(name, "of peak", long):
            aims.append(
                at_least(f"{name}, dense, 256 tokens and more: of the measured peak", min(found), 0.55)
            )
    for name in (CODE, BGE, V4):
        if found := of(name, "busy", long):
            aims.append(at_least(f"{name}, dense, 256 tokens and more: device busy", min(found), 0.97))
    if found := of(ONNX, "chunks/s", range(128, 129)):
        aims.append(at_least(f"{ONNX}, 128 tokens: chunks/s", found[0], 8000))
    return aims


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
