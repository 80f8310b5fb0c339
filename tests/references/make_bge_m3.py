"""Makes bge_m3.json: what FlagEmbedding gives for the small bge-m3, in float32 on a CPU, text by text.

    pip install torch==2.13.0 'transformers>=4.57,<5' FlagEmbedding==1.4.2
    python -m tests.references.make_bge_m3

Runs from the root of the repository in an environment of its own: the reference library needs transformers 4.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.bge_m3 import MAX_TOKENS, build
from tests.checkpoints.material import digests, encoded
from tests.references.bge_m3_cases import REFERENCES, TEXTS, rows_shown


def main() -> None:
    """Build, encode, write."""
    from FlagEmbedding import BGEM3FlagModel

    with tempfile.TemporaryDirectory() as folder:
        model = BGEM3FlagModel(str(build(Path(folder))), use_fp16=False, devices="cpu")
        found = [
            model.encode(
                [text],
                batch_size=1,
                max_length=MAX_TOKENS,
                return_dense=True,
                return_sparse=True,
                return_colbert_vecs=True,
            )
            for text in TEXTS.values()
        ]
    entries: dict[str, Any] = {}
    for name, one in zip(TEXTS, found, strict=True):
        weights = {int(token): float(weight) for token, weight in one["lexical_weights"][0].items()}
        rows = one["colbert_vecs"][0]
        entries[name] = {
            "dense": encoded(one["dense_vecs"][0]),
            "tokens": sorted(weights),
            "weights": encoded(np.array([weights[token] for token in sorted(weights)], np.float32)),
            "rows": len(rows),
            "shown": encoded(digests(rows[rows_shown(len(rows))])),
        }
    distributions = ("FlagEmbedding", "transformers", "torch", "tokenizers")
    made_by = {name: importlib.metadata.version(name) for name in distributions}
    REFERENCES.write_text(json.dumps({"made_by": made_by, "texts": entries}, indent=0, ensure_ascii=False))
    print(f"{REFERENCES}: {REFERENCES.stat().st_size} bytes")


if __name__ == "__main__":
    main()
