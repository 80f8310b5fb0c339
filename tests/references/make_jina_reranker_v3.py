"""Makes jina_reranker_v3.json: what upstream's own code gives on the small checkpoint.

    python -m tests.references.make_jina_reranker_v3 MODELING

MODELING is `modeling.py` of jinaai/jina-reranker-v3 at the registry's revision. Needs transformers 4.57 (what
that file was written for) with torch, in an environment of its own; run from the repository's root.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.checkpoints import jina_reranker_v3 as recipe

#: Neighbours in an order are at least this far apart, so that rounding cannot swap them.
LEAST_GAP = 5e-6


def upstream(modeling: Path) -> Any:
    """Upstream's model class."""
    spec = importlib.util.spec_from_file_location("upstream_modeling", modeling)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{modeling} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.JinaForRanking


def rank(model: Any, case: recipe.Case) -> dict[str, Any]:
    """Best first: positions and scores."""
    model._ensure_tokenizer()
    model._tokenizer.model_max_length = case.max_tokens
    found = model.rerank(
        case.query,
        list(case.documents),
        max_doc_length=case.document_tokens,
        max_query_length=case.query_tokens,
    )
    scores = [float(row["relevance_score"]) for row in found]
    gaps = [a - b for a, b in pairwise(scores)]
    if gaps and min(gaps) < LEAST_GAP:
        raise SystemExit(f"two scores are {min(gaps):.2e} apart; choose another seed")
    return {"order": [int(row["index"]) for row in found], "scores": [round(score, 7) for score in scores]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modeling", type=Path)
    model_class = upstream(parser.parse_args().modeling)
    with tempfile.TemporaryDirectory() as folder:
        model = model_class.from_pretrained(str(recipe.build(Path(folder))), dtype=torch.float32).eval()
        ids = recipe.make_tokenizer().get_vocab()
        # Upstream writes its own ids into the code; the small vocabulary has lower ones.
        model.doc_embed_token_id = ids["<|embed_token|>"]
        model.query_embed_token_id = ids["<|rerank_token|>"]
        numbers = {name: rank(model, case) for name, case in recipe.cases().items()}
    made = {
        "checkpoint": recipe.digest(),
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "cases": numbers,
    }
    target = Path(__file__).with_name("jina_reranker_v3.json")
    rows = json.dumps(made).replace('"cases": {', '"cases": {\n').replace("]}, ", "]},\n")
    target.write_text(rows + "\n")
    for name, found in numbers.items():
        spread = max(found["scores"]) - min(found["scores"])
        print(f"{name}: {len(found['scores'])} scores over {spread:.3f}")


if __name__ == "__main__":
    main()
