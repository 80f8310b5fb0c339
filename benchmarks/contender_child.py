"""One contender of `benchmarks.peers`, as a process: loads its encoder, then embeds what it is told to.

    python contender_child.py KIND DIRECTORY THREADS

It runs in the contender's own environment, so it imports nothing of this project but for `ours`. Each line
of stdin is an order, `{"texts": FILE, "batch": N, "vectors": FILE}`: the texts a JSON list, the vectors
written as `[n, d]` float32 .npy, a batch of 0 what the contender takes when nobody says. Each line of stdout
answers: `{"seconds": …, "cpu_seconds": …}` of embedding alone, or `{"error": …}`. The first line says that it
is loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Takes texts and a batch size, 0 for its own; gives `[n, d]`.
Embed = Callable[[list[str], int], Any]
WARM_UP = ["def add(a, b): return a + b", "the cat sat on the mat"]
MAX_TOKENS = 256


def main(kind: str, directory: str, threads: int) -> None:
    """Load, then answer orders until stdin ends."""
    embed = LOADERS[kind](directory, threads)
    embed(WARM_UP, 0)
    _say({"loaded": kind})
    for line in sys.stdin:
        order = json.loads(line)
        texts = json.loads(Path(order["texts"]).read_text())
        answer: dict[str, Any]
        try:
            cpu, wall = time.process_time(), time.perf_counter()
            vectors = embed(texts, order["batch"])
            answer = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            np.save(order["vectors"], np.asarray(vectors, np.float32))
        except Exception as error:  # whatever a peer raises, the others go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answer)
    # infinity's threads wait for ever, and nothing here is left to be tidied.
    os._exit(0)


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def ours(directory: str, threads: int) -> Embed:  # noqa: ARG001
    """The ONNX encoder as a worker has it; it packs by tokens, so a batch size means nothing to it."""
    import threading

    from registry.codecs import Dense
    from registry.processes import keep_freed_memory
    from registry.settings import load_settings
    from worker.encoders.encode import encode
    from worker.encoders.factory import load_encoder

    keep_freed_memory()
    encoder = load_encoder("qdrant-minilm-onnx", "", load_settings(device="cpu", threads=threads), ["dense"])
    lock = threading.Lock()

    def embed(texts: list[str], batch: int) -> Any:  # noqa: ARG001
        dense = encode(encoder, texts, "document", ["dense"], device_lock=lock).vectors["dense"]
        assert isinstance(dense, Dense)
        return dense.values

    return embed


def sentence_transformers(directory: str, threads: int) -> Embed:
    """`SentenceTransformer.encode`, the whole list in one call."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    loaded: Any = SentenceTransformer(directory, device="cpu")
    loaded.max_seq_length = MAX_TOKENS

    def embed(texts: list[str], batch: int) -> Any:
        given = {"batch_size": batch} if batch else {}
        return loaded.encode(texts, normalize_embeddings=True, show_progress_bar=False, **given)

    return embed


def fastembed(directory: str, threads: int) -> Embed:
    """`TextEmbedding.embed` of a model that is registered from the directory."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local-minilm",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local-minilm"),
        dim=384,
        model_file="model.onnx",
    )
    loaded = TextEmbedding("local-minilm", threads=threads, specific_model_path=directory)

    def embed(texts: list[str], batch: int) -> Any:
        given = {"batch_size": batch} if batch else {}
        return np.stack(list(loaded.embed(texts, **given)))

    return embed


def infinity(directory: str, threads: int) -> Embed:
    """infinity's engine on torch, all texts handed over at once, as its server would queue them."""
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(threads)
    loop = asyncio.new_event_loop()
    engines: dict[int, Any] = {}

    def embed(texts: Sequence[str], batch: int) -> Any:
        async def run() -> Any:
            if batch not in engines:
                given = {"batch_size": batch} if batch else {}
                engines[batch] = AsyncEmbeddingEngine.from_args(
                    EngineArgs(
                        model_name_or_path=directory,
                        engine="torch",
                        device="cpu",
                        dtype="float32",
                        trust_remote_code=False,
                        # It is of a part of optimum that later releases left out.
                        bettertransformer=False,
                        model_warmup=False,
                        **given,
                    )
                )
                await engines[batch].astart()
            vectors, _ = await engines[batch].embed(sentences=texts)
            return vectors

        return np.stack(loop.run_until_complete(run()))

    return embed


LOADERS: dict[str, Callable[[str, int], Embed]] = {
    "ours": ours,
    "sentence-transformers": sentence_transformers,
    "fastembed": fastembed,
    "infinity-emb": infinity,
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
