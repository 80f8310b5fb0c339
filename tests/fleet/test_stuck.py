"""Processes that live and do nothing: each kind is noticed, ended and started again, and the work is done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from producer.fleet import Fleet
from registry.celery_app import make_app
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.names import TASK_EMBED_QUERY, embed_queue, query_queue
from registry.plan import make_plan
from registry.settings import Settings
from tests.fleet.faulty_worker import HANG, MODEL
from tests.fleet.test_server_store import Embedded
from worker.fleet import read_state
from worker.supervised import EXIT_GAVE_UP, Child, Silence

pytestmark = pytest.mark.fleet

QUEUE = embed_queue(MODEL)
WORKER = f"worker-{MODEL}"
COUNT = 500
Bounds = dict[str, float]


class Watched:
    """A faulty worker under the fleet's own supervision, on the test's Redis, and a batch for it."""

    def __init__(self, child: Child, ledger: Ledger, app: Celery, settings: Settings) -> None:
        self.child = child
        self.ledger = ledger
        self.app = app
        self._doorbell = Doorbell(app, settings)
        self._batch = ""
        self._jobs = 0
        self._cut = 0.0

    def ready(self) -> bool:
        """Whether the process that runs now consumes."""
        living = {p.pid: p.condition for p in self.ledger.alive.list()}
        return bool(self.child.pid) and living.get(self.child.pid) == "ready"

    def stage(self, text: str = "text", count: int = 1) -> None:
        """Open a batch of `count` chunks, in a job of its own, and ring for it."""
        plan = make_plan(primary=MODEL, fake=True)
        self._jobs += 1
        job, _ = self.ledger.jobs.open(f"c{self._jobs}", plan, ["src"])
        # Equal texts would take one pass together.
        blob = pack_chunks([Chunk(chunk_id(str(i)), f"{text} {self._jobs} {i}") for i in range(count)])
        self.ledger.steps.stage(job.id, plan, 0, "upsert", list(plan.models), count, blob, 10, 1 << 30)
        self._batch = f"{job.id}.0"
        self._doorbell.ring(self._batch, QUEUE)

    def ring(self) -> None:
        """Ring again, as the reconciler would."""
        self._doorbell.ring(self._batch, QUEUE)

    def waiting(self) -> int:
        """Messages that nobody has received."""
        return self._doorbell.waiting(QUEUE)

    def leased(self) -> int:
        """Batches that a worker is at."""
        keys = self.ledger.redis.keys("v5:batch:*")
        return sum(self.ledger.redis.hexists(key, f"lease:{QUEUE}") for key in keys)

    def done(self) -> bool:
        """Whether the batch's part is recorded."""
        return bool(self.ledger.redis.hexists(f"v5:batch:{self._batch}", f"part:{MODEL}"))

    def answers(self) -> bool:
        """Whether the worker answers Celery's ping."""
        return bool(self.app.control.ping(timeout=20.0, limit=1))

    def cut(self) -> bool:
        """Cut every connection, once a second; returns whether a process has ended. One cut may not do: a
        timer's command that comes upon it before the consumer's read has all connections made anew."""
        if self.child.last_exit is None and time.monotonic() > self._cut + 1.0:
            self._cut = time.monotonic()
            self.ledger.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return self.child.last_exit is not None

    def log(self) -> str:
        return self.child.log.read_text(errors="replace")


@pytest.fixture
def watched(
    settings: Settings, ledger: Ledger, tmp_path: Path, eventually: Callable[..., Any]
) -> Iterator[Callable[..., Watched]]:
    """Starts the worker with a fault and settings; it is watched as a supervisor does, and stopped."""
    with contextlib.ExitStack() as stack:

        def start(fault: str, bounds: Bounds, silence: Silence | None = None) -> Watched:
            environment = {
                "V5_DATA_DIR": str(settings.data_dir),
                "V5_FAKE_ENCODERS": "true",
                "V5_ALIVE_SECONDS": "3",
                "V5_LEASE_SECONDS": "2",
                **{f"V5_{name.upper()}": str(value) for name, value in bounds.items()},
            }
            command = [sys.executable, "-m", "tests.fleet.faulty_worker", fault, str(tmp_path / "happened")]
            child = Child(WORKER, command, tmp_path / "worker.log", environment, silence)
            child.start()
            stack.callback(child.stop, 20)
            ended = threading.Event()

            def supervise() -> None:
                while not ended.wait(0.05):
                    child.watch()

            thread = threading.Thread(target=supervise)
            thread.start()
            stack.callback(thread.join)
            stack.callback(ended.set)
            app = make_app(settings)
            stack.callback(app.close)
            found = Watched(child, ledger, app, settings)
            eventually(found.ready, 60)
            return found

        yield start


def test_a_worker_whose_slots_have_leaked_answers_pings_and_is_replaced(
    watched: Callable[..., Watched], eventually: Callable[..., Any]
) -> None:
    worker = watched("leak", {"stuck_seconds": 4})
    first = worker.child.pid
    worker.stage()
    worker.ring()
    eventually(lambda: worker.log().count("MemoryError: made up") >= 2)
    worker.ring()
    assert worker.answers()
    assert (worker.waiting(), worker.child.pid) == (1, first), "it consumes; nothing was provoked"
    eventually(lambda: worker.child.last_exit is not None, 60)
    assert worker.child.last_exit == EXIT_GAVE_UP
    assert f"taken nothing of {QUEUE}" in worker.log()
    eventually(worker.done, 60)
    assert worker.child.restarts == 1


def test_a_consumer_of_requests_that_has_stopped_is_noticed_while_steps_go_on(
    watched: Callable[..., Watched], settings: Settings, eventually: Callable[..., Any]
) -> None:
    worker = watched("deaf", {"stuck_seconds": 4, "fake_seconds": 0.05})
    fleet = Fleet(settings)
    pending = fleet.ask(TASK_EMBED_QUERY, query_queue(MODEL), {"texts": ["a query"]})

    def ended_with_steps_at_work() -> bool:
        if worker.leased() < 2:
            worker.stage("word " * 300, 64)
        return worker.child.last_exit is not None

    eventually(ended_with_steps_at_work, 60)
    assert worker.child.last_exit == EXIT_GAVE_UP
    assert f"taken nothing of {query_queue(MODEL)}" in worker.log()
    assert fleet.answer(pending)
    fleet.close()


def test_a_consumer_that_was_cancelled_answers_pings_and_is_replaced(
    watched: Callable[..., Watched], eventually: Callable[..., Any]
) -> None:
    worker = watched("none", {"stuck_seconds": 4})
    # A process is ready a moment before it listens to remote control, so it is said until it answers.
    eventually(lambda: worker.app.control.cancel_consumer(QUEUE, reply=True, timeout=2.0, limit=1), 60)
    # Its read in flight, of a second, would take the message and put it back.
    time.sleep(2.0)
    worker.stage()
    assert worker.answers()
    assert worker.waiting() == 1
    eventually(worker.done, 60)
    assert (worker.child.restarts, worker.child.last_exit) == (1, EXIT_GAVE_UP)


@pytest.mark.parametrize(
    ("fault", "bounds", "code", "where"),
    [
        ("hang", {"hang_seconds": 4}, EXIT_GAVE_UP, "made no progress for"),
        # Only its own timer can end it: the interpreter's lock is held.
        ("native", {"silent_seconds": 4}, 1, "Timeout (0:00:03"),
    ],
)
def test_a_forward_pass_that_hangs_ends_its_process_which_says_where(
    watched: Callable[..., Watched],
    eventually: Callable[..., Any],
    fault: str,
    bounds: Bounds,
    code: int,
    where: str,
) -> None:
    worker = watched(fault, bounds)
    worker.stage(HANG)
    eventually(lambda: worker.child.last_exit is not None, 60)
    assert worker.child.last_exit == code
    log = worker.log()
    assert where in log
    assert "in hanging" in log, "the stack of the thread that hangs"
    eventually(worker.ready, 60)
    # Its lease has run out: the reconciler would ring.
    eventually(lambda: worker.ring() or worker.done(), 60)
    assert worker.child.restarts == 1


def test_a_crash_of_the_transport_ends_the_process_at_once_and_it_is_started_again(
    watched: Callable[..., Watched], eventually: Callable[..., Any]
) -> None:
    worker = watched("crash", {"hang_seconds": 600, "stuck_seconds": 600})
    eventually(worker.cut, 60)
    assert worker.child.last_exit not in (0, None)
    assert "object has no attribute 'hostname'" in worker.log()
    eventually(worker.ready, 60)
    worker.stage()
    eventually(worker.done, 60)


def test_a_crash_of_the_transport_ends_a_process_with_a_thread_that_holds_on(
    watched: Callable[..., Watched], eventually: Callable[..., Any]
) -> None:
    worker = watched("hang+crash", {"hang_seconds": 600, "stuck_seconds": 600})
    worker.stage(HANG)
    eventually(lambda: (worker.child.log.parent / "happened.hang").exists())
    eventually(worker.cut, 60)
    assert worker.child.last_exit == EXIT_GAVE_UP
    assert "its main loop has ended, and a thread holds on" in worker.log()
    eventually(worker.ready, 60)
    eventually(lambda: worker.ring() or worker.done(), 60)


def test_a_stopped_worker_is_killed_and_its_job_ends(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004", "V5_SILENT_SECONDS": "4"}
    fake_fleet.up()
    path = corpus(COUNT)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    eventually(lambda: ledger.jobs.list() and ledger.jobs.list()[0].done > 0)
    ledger.close()
    pid = fake_fleet.pids()[WORKER]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: fake_fleet.pids().get(WORKER) not in (None, pid), 60, "a restart")
    end = fake_fleet.ended(submit)
    assert (end["done"], end["dead"]) == (COUNT, 0)
    assert "hangs and is killed" in (fake_fleet.data_dir / "logs" / "fleet.log").read_text()
    (row,) = [row for row in fake_fleet.ok("ps")["processes"] if row["name"] == WORKER]
    assert row["restarts"] == 1
    assert "it gave no sign of life for" in row["note"]


def test_restarting_every_worker_in_turn_computes_no_part_twice(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    # A batch is two forward passes of 0.5 s; one that was not given back would wait for its lease to run out.
    fake_fleet.environment |= {
        "V5_FAKE_SECONDS": "0.03",
        "V5_LEASE_SECONDS": "300",
        "V5_BATCH_CHUNKS": "32",
    }
    fake_fleet.up()
    path = corpus(160, text=lambda i: f"chunk number {i} " + "word " * 300)
    ledger = Ledger(fake_fleet.settings())
    with Embedded(fake_fleet) as embedded:
        submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
        for model in (MODEL, "all-miniLM-l6"):
            name, lease = f"worker-{model}", f"lease:{embed_queue(model)}"

            def leased(lease: str = lease) -> bool:
                return any(ledger.redis.hexists(key, lease) for key in ledger.redis.keys("v5:batch:*"))

            eventually(leased)
            os.kill(fake_fleet.pids()[name], signal.SIGTERM)
            eventually(lambda n=name: n not in fake_fleet.pids(), 60, "its end")
            assert not leased(), "it went with a batch in its hands"
            eventually(lambda n=name: n in fake_fleet.pids(), 60, "a restart")
            (row,) = [row for row in read_state(fake_fleet.settings())["processes"] if row["name"] == name]
            assert (row["restarts"], row["last_exit"]) == (1, 0)
        end = fake_fleet.ended(submit)
        parts = 2 * ledger.jobs.list()[0].batches
        # No event is lost with the process that sent it, and none is made up.
        eventually(lambda: embedded.count >= parts, 10)
    assert (end["done"], end["dead"]) == (160, 0)
    assert embedded.count == parts
    ledger.close()
