"""What the ledger knows of a fleet, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ledger.alive import Process
from ledger.jobs import Job
from ledger.ledger import Ledger

#: Jobs that ended this long ago are not told of any more. Seconds.
ENDED_SECONDS = 3600
#: A process' totals by the names it announces: what they count. `cached` is an aggregator's.
COUNTERS = {
    "busy_seconds": "Time in which its device ran a forward pass.",
    "working_seconds": "Time in which it had a step to do.",
    "tokenise_seconds": "Time its threads took for tokenising, together.",
    "useful_tokens": "Tokens of texts through the device.",
    "padded_tokens": "Tokens through the device, padding included.",
    "chunks": "Chunks embedded.",
    "cached": "Copies that it gave the vectors of their text, without a forward pass.",
    "out_of_memory": "Forward passes that found too little memory.",
}

_Samples = list[tuple[dict[str, str], float]]


def metrics(ledger: Ledger) -> str:
    """One scrape. Raises LedgerUnavailable."""
    return "".join(_families(ledger))


def _families(ledger: Ledger) -> Iterator[str]:
    processes = _newest(ledger.alive.list())
    yield _family(
        "v5_process_ready", "gauge", "1: loaded and consuming.",
        [(_process(p) | {"device": p.device}, float(p.condition == "ready")) for p in processes],
    )  # fmt: skip
    workers = [process for process in processes if process.kind == "worker" and process.counters]
    copying = [process for process in processes if process.kind == "aggregator" and process.counters]
    for name, meaning in COUNTERS.items():
        counting = copying if name == "cached" else workers
        samples = [(_process(one), one.counters.get(name, 0.0)) for one in counting]
        yield _family(f"v5_worker_{name}_total", "counter", meaning, samples)
    budgets = [(_process(worker), worker.counters.get("micro_batch_tokens", 0.0)) for worker in workers]
    yield _family("v5_worker_micro_batch_tokens", "gauge", "Padded tokens of a micro-batch.", budgets)
    depths = [({"queue": queue}, float(depth)) for queue, depth in ledger.depths().items()]
    yield _family("v5_queue_steps", "gauge", "Steps that are not done.", depths)
    oldest = (time.time() - ENDED_SECONDS) * 1000
    jobs = [job for job in ledger.jobs.list() if not job.finished or job.finished > oldest]
    for name in ("staged", "done", "dead"):
        samples = [(_job(job), float(getattr(job, name))) for job in jobs]
        yield _family(f"v5_job_chunks_{name}", "gauge", f"Chunks of the job that are {name}.", samples)
    samples = [(_job(job), float(job.open_batches)) for job in jobs]
    yield _family("v5_job_open_batches", "gauge", "Batches of the job that are in flight.", samples)
    shares = [
        (_job(job) | {"worker": one.worker, "model": one.model}, one.forward_seconds / job.seconds)
        for job in jobs
        for one in job.work
        if job.seconds > 0 and one.chunks > one.cached
    ]
    yield _family(
        "v5_job_device_busy", "gauge", "The worker's forward seconds over the job's wall time.", shares
    )
    yield _family(
        "v5_inflight_bytes", "gauge", "Reserved for what is in flight.", [({}, float(ledger.reserved()))]
    )
    budget = float(ledger.blobs.budget(ledger.settings.inflight_bytes))
    yield _family("v5_inflight_budget_bytes", "gauge", "What may be reserved.", [({}, budget)])


def _newest(processes: list[Process]) -> list[Process]:
    """One of each name and host: what was killed is announced for a while beside what took its place."""
    found: dict[str, Process] = {}
    for process in sorted(processes, key=lambda p: p.since):
        found[f"{process.name}@{process.host}"] = process
    return list(found.values())


def _process(process: Process) -> dict[str, str]:
    return {"worker": f"{process.name}@{process.host}", "kind": process.kind, "model": process.model}


def _job(job: Job) -> dict[str, str]:
    return {"job": job.id, "collection": job.collection}


def _family(name: str, kind: str, meaning: str, samples: _Samples) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{said}}} {value:.17g}" if said else f"{name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
