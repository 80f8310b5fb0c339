"""MiniLM's safetensors to a fused float32 ONNX graph, once, in a process of its own, proved and cached.

`python -m worker.onnx_export MODEL SNAPSHOT FILE` is that process: it may be heavy (torch, 1 GB), as it ends.
The worker that runs the graph never loads torch.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import WeightsError
from registry.models import ModelSpec, model
from worker.onnx_cache import GRAPH, is_whole, kept, run_maker, versions_tag
from worker.weights import Weights

logger = logging.getLogger(__name__)

#: Raised when the way a graph is made changes, so that older ones are left aside.
RECIPE = 2
#: ONNX operator set of the graph; 17 is the last that the fusions of the optimizer fully know.
OPSET = 17
#: Largest difference between torch's and the graph's normalised embeddings, over all values.
MAX_DIFFERENCE = 1e-4
#: Texts on which an export must agree with torch, of different lengths, so that padding is exercised.
PROOF_TEXTS = (
    "def add(a, b):\n    return a + b",
    "",
    "Größe 漢字 🙂 \x00 end",
    "for row in rows: total += row.price * row.count\n" * 40,
)


def exported(spec: ModelSpec, weights: Weights, cache_dir: Path) -> Path:
    """The graph exported from `weights`: from the cache if it is whole, else made now.

    Raises WeightsError if it cannot be made, with what to do.
    """
    home = cache_dir / "onnx"
    name = f"{weights.sha256[:16]}-r{RECIPE}"
    if importlib.util.find_spec("torch") is None:
        return _without_torch(spec, home, name)

    def make(graph: Path) -> dict[str, Any]:
        logger.info("exporting %s to ONNX, once; about half a minute", spec.name)
        arguments = [spec.name, str(weights.path.resolve()), str(graph)]
        said = run_maker(spec.name, "worker.onnx_export", arguments, f"exporting {weights.path} to ONNX")
        return {**said, "weights": weights.sha256, "recipe": RECIPE}

    return kept(spec.name, home / f"{name}-{versions_tag()}", make)


def _without_torch(spec: ModelSpec, home: Path, name: str) -> Path:
    """A graph that another installation exported into this cache, of whatever versions."""
    for target in sorted(home.glob(f"{name}-*/")):
        if is_whole(target):
            return target / GRAPH
    raise WeightsError(
        f"{spec.name}: there is no ONNX graph in {home}, and torch, which would export it, is not installed; "
        f"install the extra [cpu] or [gpu], or give upstream's own graph: hf download "
        f"{spec.hub_id} --revision {spec.revision}"
    )


def _export(spec: ModelSpec, snapshot: Path, graph: Path) -> float:
    """Trace, fuse, prove; returns the largest difference from torch. Runs in the exporting process."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    bert = AutoModel.from_pretrained(
        snapshot, attn_implementation="eager", dtype=torch.float32, use_safetensors=True
    ).eval()
    raw = graph.with_suffix(".raw.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.tensor([[101, 2054, 2003, 102], [101, 2054, 102, 0]])
    # A mask with a hole: over a full one the tracer would record a shortcut and drop the mask.
    example = (ids, (ids != 0).long(), torch.zeros_like(ids))
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        _expect_tracer_warnings()
        with torch.inference_mode():
            torch.onnx.export(
                _last_states(bert),
                example,
                str(raw),
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes),
                opset_version=OPSET,
                dynamo=False,
            )
    _fuse(spec, raw, graph)
    raw.unlink()
    return _prove(spec, bert, snapshot, graph)


def _last_states(bert: Any) -> Any:
    """`bert` with positional inputs and one output, as a traced graph needs it."""
    import torch

    class LastStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    # The exporter restores the module's own mode: left in training, it would wake the dropout of `bert`.
    return LastStates().eval()


def _expect_tracer_warnings() -> None:
    """Silence what the tracing exporter says each time; `_prove` shows that none of it matters here."""
    from torch.jit._trace import TracerWarning

    # The tracer is deprecated in favour of an exporter whose graphs the fusions do not know.
    warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
    warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
    # transformers asks whether the mask is full; the example's is not, as in general.
    warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean", TracerWarning)
    # Negative indices would be wrong; positions are not negative.
    warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)


def _fuse(spec: ModelSpec, raw: Path, graph: Path) -> None:
    """Merge attention and GELU into onnxruntime's own operators.

    Layer norms stay plain: on a CPU, onnxruntime 1.32 runs a fused SkipLayerNormalization 4 times slower than
    the Add and LayerNormalization it stands for, which costs the whole pass 7 %.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    fused = optimize_model(
        str(raw),
        model_type="bert",
        num_heads=spec.architecture.heads,
        hidden_size=spec.architecture.hidden,
        opt_level=0,
        optimization_options=options,
    )
    found = fused.get_fused_operator_statistics()
    wanted = {"Attention": spec.architecture.layers, "BiasGelu": spec.architecture.layers}
    lacking = {name: found.get(name, 0) for name, count in wanted.items() if found.get(name, 0) != count}
    if lacking:
        raise WeightsError(f"the graph of {spec.name} was not fused as it should be: {lacking} of {wanted}")
    fused.save_model_to_file(str(graph))


def _prove(spec: ModelSpec, bert: Any, snapshot: Path, graph: Path) -> float:
    """Compare the graph with torch on texts of different lengths, padded into one batch."""
    import onnxruntime
    import torch
    from tokenizers import Tokenizer

    from worker.encoders.pooling import masked_mean, unit
    from worker.encoders.tokens import TextTokenizer

    reader = TextTokenizer(
        Tokenizer.from_file(str(snapshot / "tokenizer.json")), spec.max_tokens, pad_id=0, padding_side="right"
    )
    (batch,) = reader.prepare(PROOF_TEXTS, budget=spec.max_tokens * len(PROOF_TEXTS)).micro_batches
    ids, mask = batch.tokens.ids, batch.tokens.mask
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    got = unit(masked_mean(session.run(None, feed)[0], mask))
    with torch.inference_mode():
        states = bert(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        ).last_hidden_state
    difference = float(np.abs(got - unit(masked_mean(states.numpy(), mask))).max())
    if not difference <= MAX_DIFFERENCE:
        raise WeightsError(f"the ONNX graph of {spec.name} differs from torch by {difference:.3g}")
    return difference


def main(arguments: list[str]) -> None:
    """Export one snapshot; the last line of stdout is a JSON object about it."""
    name, snapshot, graph = arguments
    difference = _export(model(name), Path(snapshot), Path(graph))
    print(json.dumps({"max_difference": difference}))


if __name__ == "__main__":
    main(sys.argv[1:])
