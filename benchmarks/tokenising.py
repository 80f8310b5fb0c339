"""How fast a host tokenises, and from which device on that is what the device waits for.

    python -m benchmarks.tokenising [--chunks 4000] [--vocabulary 32000] [--rounds 3] [--json FILE]

MiniLM's own tokenizer, and two of the kinds that the large models have, trained here on the same functions
(theirs are not at hand; their vocabularies are five to eight times larger): byte-level BPE, as Qwen2's, and
Unigram, as XLM-RoBERTa's. Each takes batches as a worker does: tokenised, cut, sorted, packed, padded; on
one core, and on all by a worker's threads. Beside it the bare library over the same texts at once, on as many
cores: the limit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from benchmarks.functions import stdlib_functions
from benchmarks.report import at_least, save, show, show_aims
from registry.models import embedder
from registry.settings import load_settings
from worker.embedder import EmbedWorker
from worker.encoders.tokens import TextTokenizer
from worker.weights import locate

MODEL = "qdrant-minilm-onnx"
#: Padded tokens of a micro-batch on a GPU.
BUDGET = 16384
#: Texts are cut here, as the large models do far later: all their tokens count.
MOST_TOKENS = 8192


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=4000, help="functions to tokenise (default 4000)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="tokens to train (default 32000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    texts = stdlib_functions(options.chunks)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        files = _tokenizers(Path(folder), texts, options.vocabulary)
        found = {
            kind: {n: _apart(n, file, texts, options.rounds) for n in sorted({1, cores})}
            for kind, file in files.items()
        }
    show(
        f"{len(texts)} functions, {cores} cores",
        ["tokenizer", "bytes per token", "tokens/s, 1 core", "all cores", "gain", "of the bare library"],
        [
            (
                kind,
                runs[1]["bytes_per_token"],
                runs[1]["tokens_per_second"],
                runs[cores]["tokens_per_second"],
                runs[cores]["tokens_per_second"] / runs[1]["tokens_per_second"],
                runs[cores]["of_bare"],
            )
            for kind, runs in found.items()
        ],
    )
    slowest = min(runs[cores]["tokens_per_second"] for runs in found.values())
    print(f"A device that takes more than {slowest:,.0f} tokens/s waits for these {cores} cores.")
    aims = [at_least("of the bare library", min(runs[cores]["of_bare"] for runs in found.values()), 0.8)]
    show_aims(aims)
    save(options.json, {"found": found, "cores": cores, "slowest": slowest}, aims)
    return 0


def _tokenizers(folder: Path, texts: list[str], vocabulary: int) -> dict[str, Path]:
    """A tokenizer.json of each kind."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=vocabulary,
            unk_token="<unk>",  # noqa: S106
            special_tokens=["<unk>"],
            show_progress=False,
        ),
    )
    files = {}
    for kind, trained in (("byte-level BPE", bpe), ("Unigram", unigram)):
        files[kind] = folder / f"{kind}.json"
        trained.save(str(files[kind]))
    own = locate(embedder(MODEL), load_settings()).path / "tokenizer.json"
    return {"WordPiece (MiniLM's own)": own, **files}


def _apart(cores: int, file: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own: the library looks once at how many cores it may take."""
    os.environ["RAYON_NUM_THREADS"] = str(cores)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (str(file), texts, rounds, min(cores, EmbedWorker.threads)))


def measure(file: str, texts: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Medians over paired rounds: tokens per second as so many threads of a worker take them (while one packs
    what it has, the other's texts are tokenised), and of the bare library."""
    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ours = TextTokenizer(tokenizer, MOST_TOKENS, pad_id=0, padding_side="right")
    size = load_settings().batch_chunks
    batches = [texts[at : at + size] for at in range(0, len(texts), size)]
    tokens = sum(int(ours.prepare(batch, BUDGET).tokens_seen.sum()) for batch in batches)
    seconds: list[float] = []
    bare: list[float] = []
    pool = ThreadPoolExecutor(threads)
    for _ in range(rounds):
        begun = time.perf_counter()
        for _prepared in pool.map(partial(ours.prepare, budget=BUDGET), batches):
            pass
        seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for encoding in tokenizer.encode_batch_fast(texts):
            assert encoding.ids
        bare.append(time.perf_counter() - begun)
    return {
        "tokens_per_second": tokens / statistics.median(seconds),
        "bytes_per_token": sum(len(text.encode()) for text in texts) / tokens,
        "of_bare": statistics.median(b / s for b, s in zip(bare, seconds, strict=True)),
    }


if __name__ == "__main__":
    sys.exit(main())
