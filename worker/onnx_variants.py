"""The float32 graph in other number formats, made once from it, proved and cached.

`python -m worker.onnx_variants FORM GRAPH FILE TOKENIZER` makes one, in a process of its own, without torch.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from registry.errors import WeightsError
from registry.models import ModelSpec
from worker.onnx_cache import kept, run_maker, versions_tag
from worker.onnx_export import PROOF_TEXTS, exported
from worker.snapshot import sha256_of
from worker.weights import Weights

logger = logging.getLogger(__name__)

Form = Literal["int8", "float16"]
#: Raised when the way a form is made changes, so that older ones are left aside. For int8, a change of values
#: is a change of space: see registry.spaces.
RECIPE = 1
#: Worst cosine to the float32 graph over the proof's texts; int8 comes to 0.98, float16 to 0.99999.
LEAST_COSINE: dict[Form, float] = {"int8": 0.95, "float16": 0.9999}
#: Tokens of a proof's text, at most; so many are enough to show a graph that was made wrong.
_PROOF_TOKENS = 256


def formed(form: Form, spec: ModelSpec, weights: Weights, cache_dir: Path) -> Path:
    """The model's graph in that form: from the cache if it is whole, else made now.

    int8 is always made from our own export, so that the same weights always give the same numbers. Raises
    WeightsError if it cannot be made.
    """
    if form == "int8" and not (weights.path / "model.safetensors").is_file():
        raise WeightsError(
            f"{spec.name}: int8 is made from model.safetensors, which {weights.path} lacks; name a snapshot "
            f"that has it in V5_WEIGHTS for {spec.name}, or serve it without --variant"
        )
    given = weights.onnx if form == "float16" else None
    graph = given or exported(spec, weights, cache_dir)
    source = sha256_of(graph)

    def make(made: Path) -> dict[str, Any]:
        logger.info("making the %s graph of %s, once; about ten seconds", form, spec.name)
        arguments = [form, str(graph), str(made), str((weights.path / "tokenizer.json").resolve())]
        said = run_maker(spec.name, "worker.onnx_variants", arguments, f"making its {form} graph")
        return {**said, "source": source, "form": form, "recipe": RECIPE}

    return kept(spec.name, cache_dir / "onnx" / f"{source[:16]}-{form}-r{RECIPE}-{versions_tag()}", make)


def _to_int8(graph: Path, made: Path) -> None:
    """Weights to int8 by channel; activations are quantized as they come.

    One bit of the weights is left unused: with it, sums saturate on CPUs that lack VNNI, and two kinds of CPU
    would work in two spaces.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(graph),
        str(made),
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        # The fused operators' outputs have no inferred type.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _to_float16(graph: Path, made: Path) -> None:
    """All of it in float16 but what goes in and comes out."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(graph)), keep_io_types=True), str(made))


def _prove(form: Form, graph: Path, made: Path, tokenizer: Path) -> float:
    """The worst cosine between the two graphs' embeddings of a text alone."""
    import onnxruntime
    from tokenizers import Tokenizer

    from worker.encoders.pooling import masked_mean, unit
    from worker.encoders.tokens import TextTokenizer

    reader = TextTokenizer(Tokenizer.from_file(str(tokenizer)), _PROOF_TOKENS, pad_id=0, padding_side="right")
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (graph, made)
    ]
    worst = 1.0
    for batch in reader.prepare(PROOF_TEXTS, budget=1).micro_batches:
        ids, mask = batch.tokens.ids, batch.tokens.mask
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        one, other = (
            unit(masked_mean(s.run(None, {i.name: feed[i.name] for i in s.get_inputs()})[0], mask))
            for s in sessions
        )
        worst = min(worst, float((one * other).sum()))
    if not worst >= LEAST_COSINE[form]:
        raise WeightsError(f"the {form} graph is only within a cosine of {worst:.4f} of the float32 one")
    return worst


def main(arguments: list[str]) -> None:
    """Make one graph; the last line of stdout is a JSON object about it."""
    form, graph, made, tokenizer = arguments
    if form == "int8":
        _to_int8(Path(graph), Path(made))
        worst = _prove("int8", Path(graph), Path(made), Path(tokenizer))
    else:
        _to_float16(Path(graph), Path(made))
        worst = _prove("float16", Path(graph), Path(made), Path(tokenizer))
    print(json.dumps({"worst_cosine": worst}))


if __name__ == "__main__":
    main(sys.argv[1:])
