"""What a collection's vector names mean: each bound to one space, whoever writes or searches it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from registry.errors import SpaceMismatch
from registry.index import VectorIndex
from registry.plan import NamedVector, Plan, make_plan
from registry.spaces import VectorSpace, require_same


@dataclass(frozen=True)
class Binding:
    """A collection's plan and its vectors by name.

    The vectors are kept beside the plan, not derived from it, so that a later version of a model's facts is
    compared with what the standing vectors were made with.
    """

    plan: Plan
    vectors: dict[str, NamedVector]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The binding of a new collection."""
        return cls(plan, {vector.name: vector for vector in plan.vectors()})

    def extended(self, offered: Plan, where: str) -> Binding:
        """This binding with what the offered plan adds; itself if that is nothing.

        Raises SpaceMismatch, naming both sides, if a name is bound to another space. `where` names the
        collection for the message.
        """
        added = {}
        for vector in offered.vectors():
            standing = self.vectors.get(vector.name)
            if standing is None:
                added[vector.name] = vector
            else:
                require_same_vector(standing, vector, where)
        if not added:
            return self
        plan = _union(self.plan, offered, where)
        for vector in added.values():
            # What comes with an offered plan is stored as that plan says.
            if vector.kind != "sparse" and plan.index_of(vector) != (index := offered.index_of(vector)):
                plan = _with_index(plan, vector.name, index)
        return Binding(plan, {**self.vectors, **added})

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        vectors = [{**asdict(v), "fingerprint": v.fingerprint} for v in self.vectors.values()]
        return {"plan": self.plan.model_dump(mode="json"), "vectors": vectors}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises KeyError, TypeError, ValueError or PlanError if it did not."""
        vectors = {}
        for row in record["vectors"]:
            vector = NamedVector(
                row["name"],
                row["kind"],
                row["dimension"],
                tuple(row["models"]),
                tuple(VectorSpace(**space) for space in row["spaces"]),
                row["derived"],
                row["recipe"],
            )
            if vector.fingerprint != row["fingerprint"]:
                raise ValueError(f"vector {vector.name!r} does not match its fingerprint")
            vectors[vector.name] = vector
        return cls(make_plan(**record["plan"]), vectors)


def require_same_vector(standing: NamedVector, offered: NamedVector, where: str) -> None:
    """Raise SpaceMismatch, naming both sides, unless two vectors of one name are made the same way."""
    if standing.fingerprint == offered.fingerprint:
        return
    if standing.models == offered.models:
        for mine, theirs in zip(standing.spaces, offered.spaces, strict=True):
            require_same(standing.name, mine, theirs, where)
    raise SpaceMismatch(
        f"vector {standing.name!r}: {where} holds {_made(standing)} and was offered {_made(offered)}; "
        "index into another collection, or with the standing plan"
    )


def _made(vector: NamedVector) -> str:
    recipe = f" {vector.recipe}" if vector.recipe else ""
    models = " + ".join(vector.models)
    kind = vector.derived or vector.kind
    return f"{kind}{recipe} of {models}, {vector.dimension} dimensions ({vector.fingerprint})"


def _union(standing: Plan, offered: Plan, where: str) -> Plan:
    """One plan that names the vectors of both; the standing primary stays the primary.

    Raises SpaceMismatch where one plan cannot say both: made-up beside real vectors, or one model under two
    tasks.
    """
    if standing.fake != offered.fake:
        kinds = {True: "made-up vectors (fake encoders)", False: "real vectors"}
        raise SpaceMismatch(
            f"{where} holds {kinds[standing.fake]} and was offered {kinds[offered.fake]}; "
            "index into another collection"
        )
    models = tuple(dict.fromkeys((*standing.models, *offered.models)))
    if standing.truncate != offered.truncate:
        raise SpaceMismatch(
            f"{where} holds vectors of too long texts treated by {standing.truncate!r} and was offered "
            f"{offered.truncate!r}; index into another collection"
        )
    outputs, matryoshka, tasks, variants = {}, {}, {}, {}
    for model in models:
        plans = [plan for plan in (standing, offered) if model in plan.models]
        task, *others = (plan.space(model, plan.kinds(model)[0]).task for plan in plans)
        if others and others[0] != task:
            raise SpaceMismatch(
                f"{where} holds vectors of {model} under the task {task!r} and was offered {others[0]!r}; "
                "index into another collection"
            )
        tasks[model] = task
        variant, *others = (plan.variants.get(model, "") for plan in plans)
        if others and others[0] != variant:
            raise SpaceMismatch(
                f"{where} holds vectors of {model} in the variant {variant or 'float'!r} and was offered "
                f"{others[0] or 'float'!r}; index into another collection"
            )
        if variant:
            variants[model] = variant
        outputs[model] = tuple(dict.fromkeys(kind for plan in plans for kind in plan.kinds(model)))
        widths = tuple(dict.fromkeys(w for plan in plans for w in plan.matryoshka.get(model, ())))
        if widths:
            matryoshka[model] = widths
    return make_plan(
        primary=standing.primary,
        companions=tuple(model for model in models if model != standing.primary),
        outputs=outputs,
        matryoshka=matryoshka,
        ensemble=standing.ensemble or offered.ensemble,
        tasks=tasks,
        variants=variants,
        truncate=standing.truncate,
        index=standing.index,
        fake=standing.fake,
    )


def _with_index(plan: Plan, name: str, index: VectorIndex) -> Plan:
    vectors = {**plan.index.vectors, name: index}
    return plan.model_copy(update={"index": plan.index.model_copy(update={"vectors": vectors})})
