"""A real worker with faults that happen once: `python -m tests.fleet.faulty_worker FAULTS MARKER`.

FAULTS are joined by `+`; a file beside MARKER, named after the fault, says that it has happened.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from typing import Any

from kombu.transport.redis import Channel

import worker.watchdog
from registry.console import start_logging
from registry.names import query_queue
from registry.settings import load_settings
from worker.edge import Edge
from worker.embedder import EmbedWorker
from worker.encoders.fake import POISON, FakeEncoder

MODEL = "qdrant-minilm-onnx"
#: A text that makes the encoder hang, where the fault is one of the encoder's.
HANG = f"{POISON}tarry"


def leak_slots(marker: Path) -> None:
    """Let a MemoryError past the edge, once for each slot: Celery neither acknowledges nor rejects then."""
    left = [] if marker.exists() else [None] * EmbedWorker.threads
    run = Edge.run

    def leaking(edge: Edge, *arguments: Any) -> str:
        if left:
            left.pop()
            marker.touch()
            raise MemoryError("made up")
        return run(edge, *arguments)

    Edge.run = leaking  # type: ignore[method-assign]


def hang_in_forward(marker: Path, *, native: bool) -> None:
    """Make one forward pass never end; a native one keeps the interpreter's lock."""
    forward = FakeEncoder.forward

    def hanging(encoder: FakeEncoder, batch: Any) -> Any:
        if any(HANG in text for text in batch.tokens.poisons) and not marker.exists():
            marker.touch()
            if native:
                # PyDLL, unlike CDLL, does not release the lock.
                ctypes.PyDLL(None).sleep(600)
            threading.Event().wait()
        return forward(encoder, batch)

    FakeEncoder.forward = hanging  # type: ignore[method-assign]


def crash_on_lost_connection(marker: Path) -> None:
    """As kombu's transport did when it closed a channel of a connection that was gone."""
    read = Channel._brpop_read

    def crashing(channel: Channel, **options: Any) -> Any:
        try:
            return read(channel, **options)
        except channel.connection_errors as error:
            if marker.exists():
                raise
            marker.touch()
            raise AttributeError("'NoneType' object has no attribute 'hostname'") from error

    Channel._brpop_read = crashing


def lose_consumer_of_requests(marker: Path) -> None:
    """Have the first consumer of requests take nothing, as one that a lost connection left behind."""
    basic_consume = Channel.basic_consume

    def deaf(channel: Channel, queue: str, *arguments: Any, **named: Any) -> Any:
        if queue == query_queue(MODEL) and not marker.exists():
            marker.touch()
            return None
        return basic_consume(channel, queue, *arguments, **named)

    Channel.basic_consume = deaf


def main(faults: list[str], marker: Path) -> int:
    """Serve until a fault, and after it for good."""
    settings = load_settings()
    start_logging(settings)
    if "hang" in faults or "native" in faults:
        hang_in_forward(marker.with_suffix(".hang"), native="native" in faults)
    if "leak" in faults:
        leak_slots(marker.with_suffix(".leak"))
    if "deaf" in faults:
        lose_consumer_of_requests(marker.with_suffix(".deaf"))
    if "crash" in faults:
        crash_on_lost_connection(marker.with_suffix(".crash"))
        worker.watchdog.LAST_SECONDS = 3.0
    return EmbedWorker(settings, MODEL).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].split("+"), Path(sys.argv[2])))
