"""Memory of an ONNX worker's encoder over many micro-batches of mixed shapes, by how its arena is set.

    python -m benchmarks.worker_memory [--chunks 10000] [--layers 1] [--setting NAME]… [--json FILE]

Each setting runs in a process of its own over the same micro-batches: texts of 3 to 256 tokens, short ones
more often, packed as ever. The graph is the MiniLM entry's own, cut after so many layers: what a layer takes,
the next takes again, so that one layer shows in minutes what six do. Memory is resident memory;
its ratio is that at the end to that after 1,000 chunks. CPU seconds are of the passes alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.report import at_most, save, show, show_aims
from registry.models import model
from registry.settings import load_settings
from worker.encoders.base import MicroBatch
from worker.encoders.onnx import CPU_BUDGET, OnnxEncoder
from worker.encoders.tokens import Padded, pack
from worker.onnx_export import exported
from worker.weights import Weights, locate

ONNX = "qdrant-minilm-onnx"
#: Chunks after which memory is looked at first.
SETTLED = 1000
#: Passes between two shrinkages, where that is tried.
SHRINK_EVERY = 100


def _same_as_requested(options: Any) -> None:
    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(info, arena)
    options.add_session_config_entry("session.use_env_allocators", "1")


def _patterns(options: Any) -> None:
    options.enable_mem_pattern = True


def _no_arena(options: Any) -> None:
    options.enable_cpu_mem_arena = False


#: What is changed of the worker's own settings.
SETTINGS: dict[str, Callable[[Any], None]] = {
    "as served": lambda _options: None,
    "memory patterns": _patterns,
    "extended as requested": _same_as_requested,
    f"shrunk every {SHRINK_EVERY} passes": lambda _options: None,
    "no arena": _no_arena,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=10_000, help="texts (default 10000)")
    parser.add_argument("--layers", type=int, default=1, help="layers of the graph, up to 6 (default 1)")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this (default: all)")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_measure(options.setting[0], Path(options.child), options.chunks)))
        return 0
    with tempfile.TemporaryDirectory(prefix="v5-") as folder:
        cut_graph(Path(folder), options.layers)
        found = {name: in_child(name, folder, options.chunks) for name in options.setting or SETTINGS}
    base = next(iter(found.values()))["cpu_seconds"]
    rows = [
        (name, one["settled_mib"], one["end_mib"], one["end_mib"] / one["settled_mib"], one["peak_mib"],
         one["cpu_seconds"] / base)
        for name, one in found.items()
    ]  # fmt: skip
    columns = ("arena", f"MiB after {SETTLED}", "MiB at the end", "ratio", "peak", "CPU time, relative")
    show(f"{options.chunks} chunks, {options.layers} of 6 layers", columns, rows)
    served = next(iter(found))
    grown = found[served]["end_mib"] / found[served]["settled_mib"]
    aims = [at_most(f"memory at the end over that after {SETTLED} chunks, {served}", grown, 1.2)]
    show_aims(aims)
    save(options.json, {"chunks": options.chunks, "layers": options.layers, "settings": found}, aims)
    return 0


def cut_graph(folder: Path, layers: int) -> None:
    """The served graph up to and with that layer, and its tokenizer, as a snapshot in `folder`."""
    settings = load_settings()
    weights = locate(model(ONNX), settings)
    source = weights.onnx or exported(model(ONNX), weights, settings.cache_dir)
    whole = onnx.load(source)
    # One after the embeddings, then two in each layer.
    norms = [node for node in whole.graph.node if node.op_type == "LayerNormalization"]
    inputs = [one.name for one in whole.graph.input]
    last = norms[2 * layers].output[0]
    onnx.utils.extract_model(str(source), str(folder / "model.onnx"), inputs, [last], check_model=False)
    shutil.copy(weights.path / "tokenizer.json", folder)


def micro_batches(chunks: int, seed: int = 7) -> Iterator[MicroBatch]:
    """Random tokens of so many chunks, from batches of 128."""
    rng = np.random.default_rng(seed)
    for at in range(0, chunks, 128):
        lengths = np.exp(rng.uniform(np.log(3), np.log(256), min(128, chunks - at))).astype(np.int32)
        for rows in pack(lengths, CPU_BUDGET):
            width = int(lengths[rows[0]])
            ids = rng.integers(1000, 20_000, (len(rows), width))
            mask = (np.arange(width) < lengths[list(rows), None]).astype(np.int64)
            yield MicroBatch(rows, Padded(ids, mask), int(mask.sum()), mask.size, mask.shape[1])


def open_encoder(folder: Path, change: Callable[[Any], None]) -> OnnxEncoder:
    """The served encoder over a snapshot; `change` has the last word about the session's options."""
    session = onnxruntime.InferenceSession

    def opened(graph: str, options: Any, **given: Any) -> Any:
        change(options)
        return session(graph, options, **given)

    onnxruntime.InferenceSession = opened
    try:
        settings = load_settings(device="cpu", data_dir=folder)
        return OnnxEncoder(model(ONNX), "", Weights(folder, "settings"), settings)
    finally:
        onnxruntime.InferenceSession = session


def resident() -> float:
    """Resident memory of this process. MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def _measure(name: str, folder: Path, chunks: int) -> dict[str, float]:
    encoder = open_encoder(folder, SETTINGS[name])
    done = 0
    settled = peak = seconds = 0.0
    for passes, batch in enumerate(micro_batches(chunks), 1):
        begun = time.process_time()
        encoder.finish(batch, encoder.forward(batch), ["dense"])
        if "shrunk" in name and passes % SHRINK_EVERY == 0:
            encoder.free()
        seconds += time.process_time() - begun
        done += len(batch.rows)
        peak = max(peak, resident())
        if not settled and done >= SETTLED:
            settled = resident()
    return {"settled_mib": settled, "end_mib": resident(), "peak_mib": peak, "cpu_seconds": seconds}


def in_child(name: str, folder: str, chunks: int) -> dict[str, float]:
    """Measure a setting over the snapshot in `folder`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.worker_memory", "--child", folder, "--setting", name]
    done = subprocess.run([*command, "--chunks", str(chunks)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
