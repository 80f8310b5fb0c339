"""Makes jina_code.json: what sentence-transformers gives for the small checkpoint, in float32 on a CPU.

    pip install torch==2.13.0 'transformers>=4.57,<5' sentence-transformers
    python -m tests.references.make_jina_code

Runs from the root of the repository; an environment with transformers 4, for which the model was published,
makes the numbers independent of the versions that are tested.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.checkpoints.jina_code import build, write_prompts
from tests.checkpoints.material import digests, encoded
from tests.references.jina_code_cases import CUT, NAMED, REFERENCES, SHORT, TEXTS, WIDTHS


def main() -> None:
    """Build, encode, write."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder))
        write_prompts(path, NAMED)
        model = SentenceTransformer(str(path), device="cpu")

        def encode(name: str, prompt: str, **options: Any) -> Any:
            return model.encode([TEXTS[name]], prompt_name=prompt, normalize_embeddings=True, **options)

        found = {
            "texts": {name: encoded(encode(name, "nl2code_document")) for name in TEXTS},
            "prompts": {
                prompt: {name: encoded(digests(encode(name, prompt))) for name in SHORT} for prompt in NAMED
            },
            "cuts": {
                name: {
                    str(width): encoded(encode(name, "nl2code_document", truncate_dim=width))
                    for width in WIDTHS
                }
                for name in CUT
            },
        }
    distributions = ("sentence-transformers", "transformers", "torch", "tokenizers")
    made_by = {name: importlib.metadata.version(name) for name in distributions}
    REFERENCES.write_text(json.dumps({"made_by": made_by, **found}, indent=0, ensure_ascii=False))
    print(f"{REFERENCES}: {REFERENCES.stat().st_size} bytes")


if __name__ == "__main__":
    main()
