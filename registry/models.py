"""The V5 models as data. The facts and their sources are listed in docs/models.md."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Literal

from registry.errors import UnknownModel

OutputKind = Literal["dense", "sparse", "multi"]
Backend = Literal["onnxruntime", "sentence-transformers", "transformers"]
Role = Literal["PRIMARY", "SECONDARY", "TERTIARY", "QUATERNARY", "ALTERNATIVE"]


@dataclass(frozen=True)
class Output:
    """One kind of vector that a forward pass of a model yields."""

    #: `dense`: one vector; `sparse`: weighted token ids; `multi`: one row per token (late interaction).
    kind: OutputKind
    #: Length of the vector or of each row; 0 for sparse.
    dimension: int
    #: Appended to the model's name to name the vector; empty for the model's main vector.
    suffix: str = ""


@dataclass(frozen=True)
class Prompt:
    """Prefixes put verbatim before a text."""

    query: str = ""
    document: str = ""


@dataclass(frozen=True)
class Architecture:
    """Sizes that a checkpoint's config.json must confirm."""

    type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    #: Width of an attention head where it is not hidden / heads.
    head_dim: int = 0
    #: What config.json may give as `model_type`.
    model_types: tuple[str, ...] = ()


#: Name of weights in safetensors; stands for shards and their index, too.
SAFETENSORS = "model.safetensors"


#: `int8`: weights quantized once, activations on the way (onnxruntime's dynamic quantization).
Variant = Literal["int8"]
#: What is done with a document over a model's limit: its first tokens stand for it, it is refused, or it is
#: embedded in windows whose vectors are pooled.
Truncation = Literal["cut", "fail", "split-and-pool"]


@dataclass(frozen=True)
class File:
    """A file of a snapshot that holds weights, or says how they are to be read."""

    #: Path in the snapshot, with slashes.
    name: str
    #: Hex; empty where upstream publishes none that we could check.
    sha256: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Published:
    """Numbers that upstream's card shows for its own example, to hold an installation against."""

    kind: OutputKind
    #: Similarities, queries by documents, row after row.
    similarities: tuple[tuple[float, ...], ...]
    #: Longest input of the reference run, where it is not the model's own. Tokens.
    max_tokens: int = 0


@dataclass(frozen=True)
class Reranking:
    """How a listwise reranker reads its candidates."""

    #: Marks the end of each passage and of the query; both are stripped from input texts.
    embed_token: tuple[int, str]
    rerank_token: tuple[int, str]
    #: Widths of the projector on the states at these tokens: Linear, ReLU, Linear, without biases.
    projector: tuple[int, int, int]
    #: Candidates of one pass, at most; a pass also ends at the token limit.
    block: int
    max_document_tokens: int
    max_query_tokens: int


#: Ceiling for one multi-vector: rows times width must stay under it. A Qdrant server refuses more; the
#: embedded store would take it, and is held to it all the same: a vector does not depend on the store.
MAX_MULTIVECTOR_VALUES = 1_048_576


@dataclass(frozen=True)
class ModelSpec:
    """Everything fixed about one V5 model."""

    name: str
    hub_id: str
    revision: str
    role: Role
    #: Length of the main vector (for the reranker: of its internal projection).
    dimension: int
    #: Longest input in tokens, special tokens included; longer texts are cut and counted.
    max_tokens: int
    purpose: str
    architecture: Architecture
    parameters: int
    pooling: Literal["last-token", "cls", "mean", "special-tokens"]
    padding_side: Literal["left", "right"]
    #: Whether upstream's own model ends in an L2 normalisation; if not, the encoder does it.
    normalised_by_model: bool
    gpu_dtype: Literal["bfloat16", "float16", "float32"]
    licence: str
    commercial_use: bool
    backend: Backend
    outputs: tuple[Output, ...] = ()
    #: Prefix lengths at which the main vector may be cut (then normalised again).
    matryoshka: tuple[int, ...] = ()
    #: Prefixes by task; one entry named "" where the model knows no tasks.
    prompts: dict[str, Prompt] = field(default_factory=lambda: {"": Prompt()})
    default_task: str = ""
    #: SHA-256 of the weights file these vectors come from, where it is known.
    weights_sha256: str = ""
    #: What the snapshot must have beside config.json and the tokenizer.
    files: tuple[File, ...] = (File(SAFETENSORS),)
    #: Other builds of the same weights in which it may be served, each in a space of its own.
    variants: tuple[Variant, ...] = ()
    #: The one it is served in, and what is done with too long texts; see registry.serving.
    variant: Variant | Literal[""] = ""
    truncation: Truncation = "cut"
    #: Length of the training texts, where it is far under `max_tokens`. Tokens.
    trained_tokens: int = 0
    published: tuple[Published, ...] = ()
    #: Only a reranker has it.
    reranking: Reranking | None = None

    @property
    def disk_bytes(self) -> int:
        """Size of the weights on disk: of its files where they are known, else 2 bytes for each parameter, as
        upstream stores those models."""
        known = [file.bytes for file in self.files]
        return sum(known) if all(known) else 2 * self.parameters

    @property
    def reranker(self) -> bool:
        """Whether it orders candidates instead of embedding texts."""
        return self.reranking is not None

    def output(self, kind: OutputKind) -> Output:
        """The output of that kind.

        Raises UnknownModel (a usage error) if the model has none.
        """
        for output in self.outputs:
            if output.kind == kind:
                return output
        kinds = ", ".join(o.kind for o in self.outputs) or "none (it is a reranker)"
        raise UnknownModel(f"{self.name} has no {kind} output; its outputs: {kinds}")


_QWEN2_CODE = "Candidate code snippet:\n"
_MINILM = Architecture("BertModel", 6, 384, 12, 12, 1536, 30522, model_types=("bert",))
#: SHA-256 of model.safetensors of sentence-transformers/all-MiniLM-L6-v2 at its pinned revision. The ONNX
#: entry carries it too: its graph is an export of these weights, and the two agree to cosine 1.0000.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
#: SHA-256 of pytorch_model.bin of BAAI/bge-m3 at its pinned revision.
_BGE_M3_SHA256 = "b5e0ce3470abf5ef3831aa1bd5553b486803e83251590ab7ff35a117cf6aad38"

_SPECS = (
    ModelSpec(
        name="jina-code-embeddings-1.5b",
        hub_id="jinaai/jina-code-embeddings-1.5b",
        revision="39aeb4fb9b60f930934c78ae5d749a46287c248a",
        role="PRIMARY",
        dimension=1536,
        max_tokens=32768,
        purpose="code",
        architecture=Architecture("Qwen2Model", 28, 1536, 12, 2, 8960, 151936, model_types=("qwen2",)),
        parameters=1_543_714_304,
        pooling="last-token",
        padding_side="left",
        normalised_by_model=False,
        gpu_dtype="bfloat16",
        licence="CC-BY-NC-4.0",
        commercial_use=False,
        backend="sentence-transformers",
        outputs=(Output("dense", 1536),),
        matryoshka=(128, 256, 512, 1024, 1536),
        prompts={
            "nl2code": Prompt(
                "Find the most relevant code snippet given the following query:\n", _QWEN2_CODE
            ),
            "qa": Prompt(
                "Find the most relevant answer given the following question:\n", "Candidate answer:\n"
            ),
            "code2code": Prompt(
                "Find an equivalent code snippet given the following code snippet:\n", _QWEN2_CODE
            ),
            "code2nl": Prompt(
                "Find the most relevant comment given the following code snippet:\n", "Candidate comment:\n"
            ),
            "code2completion": Prompt(
                "Find the most relevant completion given the following start of code snippet:\n",
                "Candidate completion:\n",
            ),
        },
        default_task="nl2code",
        trained_tokens=512,
        published=(Published("dense", ((0.7670, 0.1117), (0.0938, 0.6607))),),
    ),
    ModelSpec(
        name="bge-m3",
        hub_id="BAAI/bge-m3",
        revision="5617a9f61b028005a4858fdac845db406aefb181",
        role="SECONDARY",
        dimension=1024,
        max_tokens=8192,
        purpose="dense + sparse + ColBERT",
        architecture=Architecture(
            "XLMRobertaModel", 24, 1024, 16, 16, 4096, 250002, model_types=("xlm-roberta",)
        ),
        parameters=567_754_752,
        pooling="cls",
        padding_side="right",
        normalised_by_model=True,
        gpu_dtype="float16",
        licence="MIT",
        commercial_use=True,
        backend="transformers",
        outputs=(Output("dense", 1024), Output("sparse", 0, "sparse"), Output("multi", 1024, "colbert")),
        weights_sha256=_BGE_M3_SHA256,
        files=(
            File("pytorch_model.bin", _BGE_M3_SHA256, 2_271_145_830),
            File(
                "colbert_linear.pt",
                "19bfbae397c2b7524158c919d0e9b19393c5639d098f0a66932c91ed8f5f9abb",
                2_100_674,
            ),
            File(
                "sparse_linear.pt",
                "45c93804d2142b8f6d7ec6914ae23a1eee9c6a1d27d83d908a20d2afb3595ad9",
                3_516,
            ),
        ),
        published=(
            Published("dense", ((0.6265, 0.3477), (0.3499, 0.678)), 512),
            Published("sparse", ((0.19555, 0.0088), (0.0, 0.1803)), 512),
            Published("multi", ((0.7797, 0.4620), (0.4524, 0.7899)), 512),
        ),
    ),
    ModelSpec(
        name="jina-embeddings-v4",
        hub_id="jinaai/jina-embeddings-v4",
        revision="4a58ca57710c49f51896e4bc820e202fbf64904b",
        role="TERTIARY",
        dimension=2048,
        max_tokens=32768,
        purpose="multi-vector + Matryoshka",
        architecture=Architecture(
            "Qwen2_5_VLModel", 36, 2048, 16, 2, 11008, 151936, model_types=("qwen2_5_vl",)
        ),
        parameters=3_934_695_552,
        pooling="mean",
        padding_side="right",
        normalised_by_model=True,
        gpu_dtype="bfloat16",
        licence="Qwen Research License",
        commercial_use=False,
        backend="transformers",
        outputs=(Output("dense", 2048), Output("multi", 128, "multi")),
        files=(
            File(SAFETENSORS),
            File("adapters/adapter_config.json"),
            File("adapters/adapter_model.safetensors"),
        ),
        matryoshka=(128, 256, 512, 1024, 2048),
        prompts={
            "retrieval": Prompt("Query: ", "Passage: "),
            # This adapter was trained with one prefix for both sides.
            "text-matching": Prompt("Query: ", "Query: "),
            "code": Prompt("Query: ", "Passage: "),
        },
        default_task="retrieval",
    ),
    ModelSpec(
        name="qdrant-minilm-onnx",
        hub_id="Qdrant/all-MiniLM-L6-v2-onnx",
        revision="5f1b8cd78bc4fb444dd171e59b18f3a3af89a079",
        role="QUATERNARY",
        dimension=384,
        max_tokens=256,
        purpose="ultra-fast ONNX",
        architecture=_MINILM,
        parameters=22_713_216,
        pooling="mean",
        padding_side="right",
        normalised_by_model=False,
        gpu_dtype="float32",
        licence="Apache-2.0",
        commercial_use=True,
        backend="onnxruntime",
        outputs=(Output("dense", 384),),
        variants=("int8",),
        weights_sha256=MINILM_SHA256,
        files=(
            File(
                "model.onnx",
                "bbd7b466f6d58e646fdc2bd5fd67b2f5e93c0b687011bd4548c420f7bd46f0c5",
                90_387_630,
            ),
        ),
    ),
    ModelSpec(
        name="all-miniLM-l6",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        role="ALTERNATIVE",
        dimension=384,
        max_tokens=256,
        purpose="plain MiniLM",
        architecture=_MINILM,
        parameters=22_713_216,
        pooling="mean",
        padding_side="right",
        normalised_by_model=True,
        gpu_dtype="float32",
        licence="Apache-2.0",
        commercial_use=True,
        backend="sentence-transformers",
        outputs=(Output("dense", 384),),
        weights_sha256=MINILM_SHA256,
        files=(File("model.safetensors", MINILM_SHA256, 90_868_376),),
    ),
    ModelSpec(
        name="jina-reranker-v3",
        hub_id="jinaai/jina-reranker-v3",
        revision="050e171c4f75dfec5b648ed8470a2475e5a30f30",
        role="QUATERNARY",
        dimension=512,
        max_tokens=131072,
        purpose="listwise reranking",
        architecture=Architecture(
            "Qwen3Model", 28, 1024, 16, 8, 3072, 151936, head_dim=128, model_types=("qwen3",)
        ),
        parameters=596_836_352,
        pooling="special-tokens",
        padding_side="left",
        normalised_by_model=True,
        gpu_dtype="bfloat16",
        licence="CC-BY-NC-4.0",
        commercial_use=False,
        backend="transformers",
        reranking=Reranking(
            embed_token=(151670, "<|embed_token|>"),
            rerank_token=(151671, "<|rerank_token|>"),
            projector=(1024, 512, 512),
            block=125,
            max_document_tokens=2048,
            max_query_tokens=512,
        ),
    ),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}
EMBEDDERS: tuple[str, ...] = tuple(spec.name for spec in _SPECS if not spec.reranker)
RERANKERS: tuple[str, ...] = tuple(spec.name for spec in _SPECS if spec.reranker)
DEFAULT_PRIMARY = "jina-code-embeddings-1.5b"
DEFAULT_RERANKER = "jina-reranker-v3"
DEFAULT_ENSEMBLE = ("jina-code-embeddings-1.5b", "bge-m3")

#: Names that V4 had and V5 removed, with the V5 model to use instead.
REMOVED: dict[str, str] = {
    "nomic-coderank": "jina-code-embeddings-1.5b",
    "gte-large": "bge-m3",
    "gte-qwen2-1.5b": "jina-code-embeddings-1.5b",
    "e5-mistral-7b": "jina-embeddings-v4",
    "gte-qwen2-7b": "jina-embeddings-v4",
    "bge-small": "all-miniLM-l6",
    "ms-marco-v2": "jina-reranker-v3",
    "ms-marco-v3": "jina-reranker-v3",
    "sbert-distil": "jina-reranker-v3",
    "msmarco-distil": "jina-reranker-v3",
    "bge-reranker-v2": "jina-reranker-v3",
    "jina-reranker-v1": "jina-reranker-v3",
}


def model(name: str) -> ModelSpec:
    """The spec of a V5 model.

    Raises UnknownModel for a removed name (naming the replacement) or an unknown one (naming the nearest).
    """
    spec = MODELS.get(name)
    if spec is not None:
        return spec
    if name in REMOVED:
        raise UnknownModel(f"model {name!r} was removed in V5; use {REMOVED[name]!r} instead")
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in MODELS], n=1, cutoff=0.6)
    hint = next((n for n in MODELS if near and n.lower() == near[0]), "")
    meant = f" (did you mean {hint!r}?)" if hint else ""
    raise UnknownModel(f"unknown model {name!r}{meant}; the V5 models: {', '.join(MODELS)}")


def embedder(name: str) -> ModelSpec:
    """The spec of a V5 embedding model; as `model`, and refuses a reranker."""
    spec = model(name)
    if spec.reranker:
        raise UnknownModel(
            f"{name} is a reranker and yields no vectors; embedding models: {', '.join(EMBEDDERS)}"
        )
    return spec


def reranker(name: str) -> ModelSpec:
    """The spec of a V5 reranker; as `model`, and refuses an embedding model."""
    spec = model(name)
    if not spec.reranker:
        raise UnknownModel(f"{name} embeds and does not rerank; rerankers: {', '.join(RERANKERS)}")
    return spec
