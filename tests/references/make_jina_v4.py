"""Make tests/references/jina_v4.json: upstream's own modeling code on the small checkpoint.

    python -m tests.references.make_jina_v4 UPSTREAM CHECKPOINT

UPSTREAM is the package directory with upstream's four files (`modeling_jina_embeddings_v4.py`,
`configuration_jina_embeddings_v4.py`, `custom_lora_module.py`, `qwen2_5_vl.py`), which want transformers
4.52 to 4.5x, peft, torchvision and pillow beside this project's torch. CHECKPOINT is made by
`tests/checkpoints/jina_v4.py`. The float32 numbers come from `forward` outside autocast; those of
`encode_text`, which computes under bfloat16 autocast, stand beside them.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoints.jina_v4 import digest
from tests.references.jina_v4_cases import (
    BFLOAT16,
    CASES,
    LIMIT,
    REFERENCES,
    Case,
    crc,
    kept_rows,
    pack,
    signed_sum,
)

_PROMPT_NAMES = {"query": "query", "document": "passage"}


def main(upstream: Path, checkpoint: Path) -> None:
    """Write the references."""
    sys.path.insert(0, str(upstream.parent))
    module = importlib.import_module(f"{upstream.name}.modeling_jina_embeddings_v4")
    adapted = module.JinaEmbeddingsV4Model.from_pretrained(str(checkpoint), torch_dtype=torch.float32)
    model = adapted.get_base_model().eval()
    model.verbosity = 0
    with torch.inference_mode():
        references = {case.key: reference(model, case) for case in CASES}
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "peft")}
    document = {"versions": versions, "checkpoint": digest(checkpoint), "cases": references}
    REFERENCES.write_text(json.dumps(document, indent=0, separators=(",", ":")) + "\n")


def reference(model: Any, case: Case) -> dict[str, Any]:
    """Upstream's numbers for one case."""
    # Upstream takes the prefix of text-matching from its `task` property.
    model.task = case.task
    prompt_name = _PROMPT_NAMES[case.side]
    prefix = model._validate_encoding_params(prompt_name=prompt_name)["prefix"]
    batch = model.processor.process_texts([case.text], max_length=LIMIT, prefix=prefix)
    out = model(**batch, task_label=case.task, output_vlm_last_hidden_states=True)
    ids = batch["input_ids"][0].tolist()
    rows = out.multi_vec_emb[0].numpy()
    made: dict[str, Any] = {
        "tokens": len(ids),
        "crc": crc(ids),
        "dense": pack(out.single_vec_emb[0].numpy()),
        "rows": pack(rows[kept_rows(len(ids))]),
        "signed_sum": pack(signed_sum(rows)),
    }
    if "vision" in case.name:
        # Upstream takes such a text for a picture and pools a part of it; here a text is only text.
        made["dense_as_picture"] = made["dense"]
        states, mask = out.vlm_last_hidden_states, batch["attention_mask"]
        as_text = model.get_single_vector_embeddings(states, mask, torch.zeros_like(batch["input_ids"]))
        made["dense"] = pack(as_text[0].numpy())
    if case.key in BFLOAT16:
        arguments = {"task": case.task, "prompt_name": prompt_name, "max_length": LIMIT}
        dense = model.encode_text(case.text, **arguments)
        multi = model.encode_text(case.text, return_multivector=True, **arguments)
        made["bfloat16"] = {
            "dense": pack(dense.float().numpy()),
            "rows": pack(np.asarray(multi.float()[kept_rows(len(ids))])),
        }
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
