"""A plan: which vectors every chunk gets, from which models, and how they are named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry.errors import PlanError
from registry.index import Index, VectorIndex
from registry.models import DEFAULT_ENSEMBLE, DEFAULT_PRIMARY, ModelSpec, OutputKind, Truncation, embedder
from registry.serving import served
from registry.spaces import VectorSpace, space_of

Transport = Literal["float32", "float16"]
EnsembleMethod = Literal["weighted_average", "max_pooling", "concat"]
ENSEMBLE_NAME = "ensemble"


class Ensemble(BaseModel):
    """One fused vector of several models' dense outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[str, ...] = DEFAULT_ENSEMBLE
    method: EnsembleMethod = "weighted_average"
    #: One weight per member, for `weighted_average`; empty means 1.0 each.
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class NamedVector:
    """One named vector of a collection and where it comes from."""

    name: str
    kind: OutputKind
    dimension: int
    #: The models whose parts it needs: one, or the ensemble's members.
    models: tuple[str, ...]
    #: One space per model, in the order of `models`.
    spaces: tuple[VectorSpace, ...]
    #: How it is made of the parts: as they are, a normalised prefix, or fused.
    derived: Literal["", "matryoshka", "ensemble"] = ""
    #: For an ensemble: method and weights, which belong to its identity.
    recipe: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits naming everything that decides this vector's values."""
        parts = [self.kind, str(self.dimension), self.derived, self.recipe]
        parts += [space.fingerprint for space in self.spaces]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


class Plan(BaseModel):
    """Primary model, companions, further outputs, derived vectors.

    Validation raises PlanError or UnknownModel, both usage errors with a sentence for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    primary: str = DEFAULT_PRIMARY
    companions: tuple[str, ...] = ()
    #: Outputs per model; a model not named here gives its dense vector.
    outputs: dict[str, tuple[OutputKind, ...]] = Field(default_factory=dict)
    #: Matryoshka prefixes per model, as further named vectors.
    matryoshka: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    ensemble: Ensemble | None = None
    #: Task per model; a model not named here runs under its default task.
    tasks: dict[str, str] = Field(default_factory=dict)
    #: Variant per model; a model not named here is served with its weights as they are.
    variants: dict[str, str] = Field(default_factory=dict)
    #: What is done with a document over a model's limit.
    truncate: Truncation = "cut"
    #: How the collection stores and indexes the vectors; no part of what the vectors are.
    index: Index = Index()
    #: Number format of vectors on their way through Redis; no part of a space, but noted beside it.
    transport: Transport = "float32"
    #: True for vectors made up by the test encoders; they live in spaces of their own.
    fake: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """Primary first, then the companions."""
        return (self.primary, *self.companions)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.models:
            embedder(name)
        for name in self.companions:
            if name == self.primary:
                raise PlanError(f"{name} is both primary and companion; name it once")
            if self.companions.count(name) > 1:
                raise PlanError(f"companion {name} is named twice")
        for label, table in (
            ("outputs", self.outputs),
            ("matryoshka", self.matryoshka),
            ("tasks", self.tasks),
            ("variants", self.variants),
        ):
            for name in table:
                embedder(name)
                if name not in self.models:
                    raise PlanError(
                        f"{label} are set for {name}, which is not in the plan ({', '.join(self.models)})"
                    )
        for name, kinds in self.outputs.items():
            if not kinds:
                raise PlanError(f"{name} is in the plan but no output of it is; drop the model or name one")
            if len(set(kinds)) != len(kinds):
                raise PlanError(f"an output of {name} is named twice: {', '.join(kinds)}")
            for kind in kinds:
                embedder(name).output(kind)
        for name, widths in self.matryoshka.items():
            spec = embedder(name)
            if not spec.matryoshka:
                raise PlanError(f"{name} is no Matryoshka model: its vector cannot be cut")
            if "dense" not in self.kinds(name):
                raise PlanError(f"Matryoshka prefixes of {name} need its dense output in the plan")
            for width in widths:
                if width not in spec.matryoshka or width == spec.dimension:
                    allowed = ", ".join(str(d) for d in spec.matryoshka if d != spec.dimension)
                    raise PlanError(f"{name} has no Matryoshka prefix of {width}; it has {allowed}")
            if len(set(widths)) != len(widths):
                raise PlanError(f"a Matryoshka prefix of {name} is named twice")
        self._check_ensemble()
        self._check_index()
        for name in self.models:
            for kind in self.kinds(name):
                self.space(name, kind)
        return self

    def _check_ensemble(self) -> None:
        ensemble = self.ensemble
        if ensemble is None:
            return
        if len(ensemble.members) < 2:
            raise PlanError("an ensemble needs at least two members")
        if len(set(ensemble.members)) != len(ensemble.members):
            raise PlanError("an ensemble names a member twice")
        for name in ensemble.members:
            embedder(name)
            if name not in self.models:
                raise PlanError(
                    f"ensemble member {name} is not in the plan; add `--companion {name}` or leave it out"
                )
            if "dense" not in self.kinds(name):
                raise PlanError(f"ensemble member {name} needs its dense output in the plan")
        if ensemble.weights:
            if ensemble.method != "weighted_average":
                raise PlanError(f"ensemble weights mean nothing to {ensemble.method}")
            if len(ensemble.weights) != len(ensemble.members):
                raise PlanError(
                    f"{len(ensemble.weights)} ensemble weights for {len(ensemble.members)} members"
                )
            if min(ensemble.weights) < 0 or sum(ensemble.weights) <= 0:
                raise PlanError("ensemble weights must not be negative, nor all zero")

    def _check_index(self) -> None:
        if not self.index.vectors:
            return
        kinds = {vector.name: vector.kind for vector in self.vectors()}
        for name in self.index.vectors:
            if name not in kinds:
                raise PlanError(
                    f"an index is set for {name!r}, which is no vector of the plan ({', '.join(kinds)})"
                )
            if kinds[name] == "sparse":
                raise PlanError(f"{name} is sparse: its index knows only `sparse_on_disk`")

    def index_of(self, vector: NamedVector) -> VectorIndex:
        """How the collection stores and indexes one of its dense or multi-vectors."""
        of_kind = self.index.multi if vector.kind == "multi" else self.index.dense
        return self.index.vectors.get(vector.name, of_kind)

    def kinds(self, name: str) -> tuple[OutputKind, ...]:
        """The outputs that the plan takes from a model."""
        return self.outputs.get(name, ("dense",))

    def space(self, name: str, kind: OutputKind) -> VectorSpace:
        """The vector space in which a model of this plan works."""
        return space_of(self.served(name), kind, self.tasks.get(name, ""), fake=self.fake)

    def served(self, name: str) -> ModelSpec:
        """A model's spec as this plan wants it served."""
        return served(embedder(name), self.variants.get(name, ""), self.truncate)

    def worker_options(self, name: str) -> list[str]:
        """What `v5 worker` must be told to serve a model of this plan."""
        given = {
            "--task": self.tasks.get(name, ""),
            "--variant": self.variants.get(name, ""),
            "--truncate": self.truncate if self.truncate != "cut" else "",
        }
        return [word for option, value in given.items() if value for word in (option, value)]

    @property
    def value_bytes(self) -> int:
        """Of each value of a dense or multi-vector on its way through Redis."""
        return 2 if self.transport == "float16" else 4

    def vectors(self) -> tuple[NamedVector, ...]:
        """Every named vector, primary's first; names are unique."""
        found: list[NamedVector] = []
        for name in self.models:
            spec = embedder(name)
            for kind in self.kinds(name):
                output = spec.output(kind)
                full = f"{name}-{output.suffix}" if output.suffix else name
                found.append(NamedVector(full, kind, output.dimension, (name,), (self.space(name, kind),)))
            for width in self.matryoshka.get(name, ()):
                space = self.space(name, "dense")
                found.append(NamedVector(f"{name}-{width}", "dense", width, (name,), (space,), "matryoshka"))
        if self.ensemble is not None:
            found.append(self._ensemble_vector(self.ensemble))
        return tuple(found)

    def _ensemble_vector(self, ensemble: Ensemble) -> NamedVector:
        widths = [embedder(name).dimension for name in ensemble.members]
        smallest = min(widths)
        dimension = smallest * len(widths) if ensemble.method == "concat" else smallest
        weights = ensemble.weights or (1.0,) * len(widths)
        return NamedVector(
            ENSEMBLE_NAME,
            "dense",
            dimension,
            ensemble.members,
            tuple(self.space(name, "dense") for name in ensemble.members),
            "ensemble",
            json.dumps([ensemble.method, list(weights)]),
        )

    def vector(self, name: str) -> NamedVector:
        """The named vector of that name. Raises PlanError naming those there are."""
        for vector in self.vectors():
            if vector.name == name:
                return vector
        raise PlanError(
            f"no vector {name!r} in this plan; it has {', '.join(v.name for v in self.vectors())}"
        )

    def models_for(self, names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        """The models whose forward pass those named vectors need, in plan order."""
        needed = {m for v in self.vectors() if v.name in set(names) for m in v.models}
        return tuple(m for m in self.models if m in needed)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the names and fingerprints of all vectors; equal plans have equal ones."""
        text = json.dumps(sorted((v.name, v.fingerprint) for v in self.vectors()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line for people: `a (384) + b (1024)`, and what is unusual about them."""
        said = " + ".join(f"{v.name} ({', '.join(self._facts(v))})" for v in self.vectors())
        return said if self.transport == "float32" else f"{said}, sent as {self.transport}"

    def _facts(self, vector: NamedVector) -> list[str]:
        facts = [str(vector.dimension) if vector.dimension else "sparse"]
        facts += [self.variants[model] for model in vector.models if model in self.variants]
        return facts if self.truncate == "cut" else [*facts, self.truncate]

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but costs quality, a sentence each."""
        if self.ensemble is None:
            return ()
        specs = [embedder(name) for name in self.ensemble.members]
        width = min(spec.dimension for spec in specs)
        return tuple(
            f"the ensemble cuts the {spec.dimension} values of {spec.name} to {width}, and "
            f"{_not_made_for(spec)}; its share of the fused vector loses quality (leave it out, or search "
            "its own vector, too)"
            for spec in specs
            if spec.dimension != width and width not in spec.matryoshka
        )


def _not_made_for(spec: ModelSpec) -> str:
    if spec.matryoshka:
        return f"it was trained to be cut at {', '.join(str(d) for d in spec.matryoshka)} only"
    return "it is no Matryoshka model"


def make_plan(**fields: Any) -> Plan:
    """Build a Plan, turning pydantic's report of a malformed field into one PlanError sentence."""
    try:
        return Plan(**fields)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        raise PlanError(f"the plan is not valid: {said}") from None


def plan_from_json(text: str | bytes) -> Plan:
    """Read a plan as `model_dump_json` writes it. Raises PlanError."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise PlanError(f"the plan is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise PlanError("the plan is not a JSON object")
    return make_plan(**fields)
