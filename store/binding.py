"""What a collection's vector names mean: each bound to one space, whoever writes or searches it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from registry.errors import SpaceMismatch, UsageError
from registry.index import VectorIndex
from registry.plan import NamedVector, Plan, make_plan
from registry.spaces import VectorSpace, require_same

#: What to do about a vector of another space.
WAYS_OUT = (
    "go on with the standing plan, index into another collection, or have what stands embedded anew with "
    "`v5 submit … --migrate`"
)


@dataclass(frozen=True)
class Change:
    """A vector that stands in one space and is offered in another."""

    standing: NamedVector
    offered: NamedVector

    @property
    def difference(self) -> str:
        """What differs, for people."""
        if self.standing.models == self.offered.models:
            pairs = zip(self.standing.spaces, self.offered.spaces, strict=True)
            if found := "; ".join(s.differences(o) for s, o in pairs if s != o):
                return found
        return f"{_made(self.standing)} ≠ {_made(self.offered)}"


@dataclass(frozen=True)
class Migration:
    """A migration under way: its vectors are bound to their former spaces and cannot be searched, and nothing
    is written, so that what is newer than `since` can only be of the spaces to come."""

    #: Fingerprints of what the vectors will be, by name.
    targets: dict[str, str]
    #: The start of the job that migrates: what is older holds the former vectors. Unix milliseconds.
    since: int


@dataclass(frozen=True)
class Binding:
    """A collection's plan and its vectors by name.

    The vectors are kept beside the plan, not derived from it, so that a later version of a model's facts is
    compared with what the standing vectors were made with.
    """

    plan: Plan
    vectors: dict[str, NamedVector]
    #: Names what the collection is filled with: another one for a collection made anew, and for each step of
    #: a migration.
    made: str = ""
    #: By migrated vector, the start of the job that migrated it: a point of an older job holds none of its
    #: space, whatever a write that was long under way left there. Unix milliseconds.
    since: dict[str, int] = field(default_factory=dict)
    migrating: Migration | None = None

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The binding of a new collection."""
        return cls(plan, {vector.name: vector for vector in plan.vectors()}, _fresh_name())

    def extended(self, offered: Plan, where: str) -> Binding:
        """This binding with what the offered plan adds; itself if that is nothing.

        Raises SpaceMismatch, naming both sides, if a name is bound to another space. `where` names the
        collection for the message.
        """
        return self.joined(Binding.of(offered), where)

    def joined(self, offered: Binding, where: str) -> Binding:
        """As `extended`, with vectors as they were recorded."""
        self.require_settled(where)
        added = {}
        for vector in offered.vectors.values():
            standing = self.vectors.get(vector.name)
            if standing is None:
                added[vector.name] = vector
            else:
                require_same_vector(standing, vector, where)
        if not added:
            return self
        plan = _indexed(_union(self.plan, offered.plan, where), offered.plan, added.values())
        return replace(self, plan=plan, vectors={**self.vectors, **added})

    @property
    def settled(self) -> list[str]:
        """The vectors that are not being migrated."""
        return [name for name in self.vectors if self.migrating is None or name not in self.migrating.targets]

    def require_settled(self, where: str, names: Iterable[str] | None = None) -> None:
        """Raise SpaceMismatch if one of the vectors (default: any) is on its way to another space."""
        under_way = self.migrating.targets if self.migrating else {}
        for name in under_way if names is None else sorted(under_way.keys() & set(names)):
            rest = ", ".join(self.settled) or "none"
            raise SpaceMismatch(
                f"vector {name!r} of {where} is being migrated from {self.vectors[name].fingerprint} to "
                f"{under_way[name]}; until that is done nothing is written there, and only its other vectors "
                f"can be searched ({rest}). If nobody is at it, submit with --migrate: it goes on"
            )

    def require_current(self, names: Iterable[str], started: int, where: str) -> None:
        """Raise SpaceMismatch if a job of that start may not write these vectors, or nobody may now."""
        self.require_settled(where)
        for name in names:
            if started < self.since.get(name, 0):
                raise SpaceMismatch(
                    f"vector {name!r} of {where} was migrated to {self.vectors[name].fingerprint} by a later "
                    "job; what an older one made for it is not written"
                )

    def changes(self, offered: Plan, where: str) -> list[Change]:
        """The vectors that a migration to the offered plan would drop and have embedded anew.

        Raises UsageError if another vector of the collection could not stay as it is.
        """
        under_way = self.migrating.targets if self.migrating else {}
        found = [
            Change(standing, vector)
            for vector in offered.vectors()
            if (standing := self.vectors.get(vector.name)) is not None
            and (standing.fingerprint != vector.fingerprint or vector.name in under_way)
        ]
        if found:
            self._succeeded(offered, where)
        return found

    def leaving(self, offered: Plan, started: int, where: str) -> Binding:
        """This binding on its way to the offered plan, by a job of that start; one that another began and
        left is taken up where it stands. Raises as `changes`."""
        targets = {change.offered.name: change.offered.fingerprint for change in self.changes(offered, where)}
        if self.migrating is not None and self.migrating.targets == targets:
            return self
        return replace(self, made=_fresh_name(), migrating=Migration(targets, started))

    def arrived(self, offered: Plan, where: str) -> Binding:
        """What `leaving` led to: the offered plan's vectors and those that it has not."""
        if self.migrating is None:
            return self
        since = self.since | dict.fromkeys(self.migrating.targets, self.migrating.since)
        vectors = self.vectors | {vector.name: vector for vector in offered.vectors()}
        return Binding(self._succeeded(offered, where), vectors, _fresh_name(), since)

    def _succeeded(self, offered: Plan, where: str) -> Plan:
        """One plan of both, in which the offered one counts where they differ. Raises UsageError where that
        would change a vector that the offered one does not have."""
        plan = _both(self.plan, offered)
        mine = {vector.name for vector in offered.vectors()}
        for vector in self.plan.vectors():
            change = Change(vector, plan.vector(vector.name))
            if vector.name not in mine and change.offered.fingerprint != vector.fingerprint:
                raise UsageError(
                    f"{where} also holds {vector.name!r}, which one plan cannot keep as it is beside the one "
                    f"offered ({change.difference}): name it in the plan, so that it is migrated, too, or "
                    "index into another collection"
                )
        added = [vector for vector in offered.vectors() if vector.name not in self.vectors]
        return _indexed(plan, offered, added)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        vectors = [{**asdict(v), "fingerprint": v.fingerprint} for v in self.vectors.values()]
        return {
            "plan": self.plan.model_dump(mode="json"),
            "vectors": vectors,
            "made": self.made,
            "since": self.since,
            "migrating": asdict(self.migrating) if self.migrating else None,
        }

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
        migrating = record.get("migrating")
        return cls(
            make_plan(**record["plan"]),
            vectors,
            str(record.get("made", "")),
            {name: int(since) for name, since in record.get("since", {}).items()},
            Migration(dict(migrating["targets"]), int(migrating["since"])) if migrating else None,
        )


def require_same_vector(standing: NamedVector, offered: NamedVector, where: str) -> None:
    """Raise SpaceMismatch, naming both sides, unless two vectors of one name are made the same way."""
    if standing.fingerprint == offered.fingerprint:
        return
    try:
        if standing.models == offered.models:
            for mine, theirs in zip(standing.spaces, offered.spaces, strict=True):
                require_same(standing.name, mine, theirs, where)
    except SpaceMismatch as error:
        raise SpaceMismatch(f"{error}; {WAYS_OUT}") from None
    raise SpaceMismatch(
        f"vector {standing.name!r}: {where} holds {_made(standing)} and was offered {_made(offered)}; "
        f"{WAYS_OUT}"
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
    if standing.truncate != offered.truncate:
        raise SpaceMismatch(
            f"{where} holds vectors of too long texts treated by {standing.truncate!r} and was offered "
            f"{offered.truncate!r}; index into another collection"
        )
    for model in standing.models:
        if model not in offered.models:
            continue
        mine, theirs = _task(standing, model), _task(offered, model)
        if mine != theirs:
            raise SpaceMismatch(
                f"{where} holds vectors of {model} under the task {mine!r} and was offered {theirs!r}; "
                "index into another collection"
            )
        mine, theirs = (plan.variants.get(model, "") for plan in (standing, offered))
        if mine != theirs:
            raise SpaceMismatch(
                f"{where} holds vectors of {model} in the variant {mine or 'float'!r} and was offered "
                f"{theirs or 'float'!r}; index into another collection"
            )
    return _both(standing, offered)


def _both(standing: Plan, offered: Plan) -> Plan:
    """One plan that names the vectors of both; the standing primary stays the primary, and where they differ
    in how a model is served, the offered one counts."""
    models = tuple(dict.fromkeys((*standing.models, *offered.models)))
    outputs, matryoshka, tasks, variants = {}, {}, {}, {}
    for model in models:
        plans = [plan for plan in (standing, offered) if model in plan.models]
        tasks[model] = _task(plans[-1], model)
        if variant := plans[-1].variants.get(model, ""):
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
        ensemble=offered.ensemble or standing.ensemble,
        tasks=tasks,
        variants=variants,
        truncate=offered.truncate,
        transport=offered.transport,
        index=standing.index,
        fake=offered.fake,
    )


def _task(plan: Plan, model: str) -> str:
    return plan.space(model, plan.kinds(model)[0]).task


def _indexed(plan: Plan, offered: Plan, added: Iterable[NamedVector]) -> Plan:
    """The plan with the added vectors stored as the plan that brings them says."""
    for vector in added:
        if vector.kind != "sparse" and plan.index_of(vector) != (index := offered.index_of(vector)):
            plan = _with_index(plan, vector.name, index)
    return plan


def _fresh_name() -> str:
    return secrets.token_hex(8)


def _with_index(plan: Plan, name: str, index: VectorIndex) -> Plan:
    vectors = {**plan.index.vectors, name: index}
    return plan.model_copy(update={"index": plan.index.model_copy(update={"vectors": vectors})})
