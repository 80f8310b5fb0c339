"""What a proof leaves behind: the model's golden vectors, in the ledger of the fleet."""

from __future__ import annotations

from ledger.ledger import Ledger
from registry.errors import CodecError, V5Error
from registry.settings import Settings
from registry.spaces import VectorSpace
from worker.encoders.goldens import Golden, agreement, pack_golden, unpack_golden
from worker.prove import Finding, Proof


def record(proof: Proof, settings: Settings) -> list[Finding]:
    """Record the goldens of a model that was proved; says for each space what stands now.

    Other goldens that stand already are replaced if published numbers prove the model, and contradict it if
    none do.
    """
    ledger = Ledger(settings)
    try:
        ledger.check()
        return [_record(ledger, space, golden, proof.numbers > 0) for space, golden in proof.goldens.items()]
    except V5Error as error:
        said = f"not recorded, a worker does it when it joins: {str(error).partition(chr(10))[0]}"
        return [Finding("golden vectors of the fleet", "not checked", said=said)]
    finally:
        ledger.close()


def _record(ledger: Ledger, space: VectorSpace, golden: Golden, certain: bool) -> Finding:
    what = f"golden {space.output} vectors of the fleet, space {space.fingerprint}"
    blob = pack_golden(golden)
    standing = ledger.goldens.offer(space.fingerprint, blob)
    if standing == blob:
        return Finding(what, "ok", said="recorded")
    try:
        found = agreement(unpack_golden(standing), golden)
        worst, problem = found.worst, found.problem
    except CodecError as error:
        worst, problem = 0.0, str(error)
    if not problem:
        return Finding(what, "ok", worst, said="smallest cosine with those that stood already")
    if certain:
        ledger.goldens.replace(space.fingerprint, blob)
        return Finding(what, "ok", worst, said=f"replaced those that stood, which were wrong: {problem}")
    said = (
        f"{problem}; no published number says which are right. Compare the weights of both machines with "
        "`v5 models check`"
    )
    return Finding(what, "wrong", worst, said=said)
