"""One run: a stack, a corpus, the faults of a schedule, and the oracle's word at the end."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from ledger.ledger import Ledger
from registry.names import BROKER_PREFIX, PREFIX
from tests.chaos.faults import Done, inject
from tests.chaos.material import Material
from tests.chaos.oracle import Encoders, Expected, Findings, check_ledger, check_store, read_expected
from tests.chaos.schedule import Injection, Schedule, make_schedule
from tests.chaos.stack import PATIENCE, Stack

COLLECTION = "chaos"
#: A phase that takes longer is stuck. Seconds.
STUCK = 120.0
#: A fault whose moment does not come, because the one before holds everything up, is done this long after it.
#: Seconds.
MOST_BETWEEN = 5.0
#: A producer that begins while Redis is away says so and ends; one that has begun waits.
_AWAY = re.compile("cannot be reached|closed the connection|loading the dataset|no fleet runs")

Say = Callable[[str], None]


@dataclass
class Result:
    """What a run came to."""

    seed: int
    schedule: str
    #: Faults done, by name; those that found nothing to be done to are not counted.
    faults: dict[str, int] = field(default_factory=dict)
    chunks: int = 0
    findings: Findings = field(default_factory=Findings)
    #: What ended the run early.
    failure: str = ""
    #: Texts taken to a model, every attempt counted, and how many would have been enough.
    attempts: int = 0
    needed: int = 0
    seconds: float = 0.0
    #: Where data and logs are kept, if it failed.
    kept: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything is as the oracle has it."""
        return not self.failure and not list(self.findings)


class Stuck(AssertionError):
    """A run that does not end."""


def run(seed: int, *, keep: bool = False, slowness: float = 1.0, say: Say = lambda _text: None) -> Result:
    """Run a seed's schedule; `slowness` stretches the limit for a phase on a busy machine."""
    schedule = make_schedule(seed)
    say(str(schedule))
    result = Result(seed, str(schedule))
    began = time.monotonic()
    # Unix sockets have at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="v5c-"))
    stack = Stack(schedule, folder)
    try:
        _Run(stack, schedule, result, slowness, say).go()
    except Exception as error:
        # Whatever it is, the other runs go on, and this one is told of.
        where = "" if isinstance(error, AssertionError) else f"{traceback.format_exc()}\n"
        result.failure = f"{type(error).__name__}: {error}\n{where}{diagnosis(stack)}"
    finally:
        stack.close()
        result.seconds = time.monotonic() - began
        if result.ok and not keep:
            stack.unmount()
            shutil.rmtree(folder, ignore_errors=True)
        else:
            result.kept = _kept(stack, folder)
    return result


class _Run:
    def __init__(self, stack: Stack, schedule: Schedule, result: Result, slowness: float, say: Say) -> None:
        self._stack = stack
        self._schedule = schedule
        self._result = result
        self._limit = STUCK * slowness
        self._say = say
        self._began = time.monotonic()
        #: What ends by itself; a fault may last into the next phase.
        self._lasting: list[threading.Timer] = []

    def go(self) -> None:
        stack, schedule, result = self._stack, self._schedule, self._result
        material = Material(stack.folder, schedule.seed)
        plan = stack.start()
        self._tell("ready")
        encoders = Encoders(plan, stack.settings)
        before: Expected | None = None
        earlier: Expected | None = None
        with Watch(stack) as watch:
            for phase, injections in zip(schedule.phases, schedule.injections, strict=True):
                if phase == "change":
                    material.change()
                expected = read_expected(material.paths, stack.settings, before)
                options = ["--prune"] if phase == "change" else []
                since = int(time.time() * 1000)
                end = self._submit(material.paths, options, injections, expected, watch)
                self._check_end(end, expected, before)
                result.needed += encoders.embedded(expected, before)
                before, earlier = expected, before
        result.chunks = len(expected.chunks)
        result.attempts = watch.attempts
        self._settle()
        ledger = Ledger(stack.settings)
        check_ledger(ledger, end["job"], expected, result.findings, wiped="wipe redis" in result.faults)
        if not schedule.loses:
            self._check_exact(ledger, since, expected, earlier, encoders)
        ledger.close()
        stack.end()
        check_store(stack.settings, COLLECTION, expected, encoders, plan, result.findings)
        self._tell("checked")

    def _tell(self, what: str) -> None:
        self._say(f"  {time.monotonic() - self._began:5.1f} s  {what}")

    def _submit(
        self,
        paths: list[Path],
        options: list[str],
        injections: tuple[Injection, ...],
        expected: Expected,
        watch: Watch,
    ) -> dict[str, Any]:
        """Submit as a person does who submits again until it is through; returns the last summary."""
        stack = self._stack
        end = time.monotonic() + self._limit
        watch.begin(len(expected.chunks))
        faults = _Faults(stack, injections, watch, self._note, self._lasting)
        command = ["submit", *map(str, paths), "-c", COLLECTION, *stack.plan_options, "--json", *options]
        while True:
            stack.producer = stack.fleet.start(*command)
            out, err = _Reader(stack.producer.stdout), _Reader(stack.producer.stderr)
            while stack.producer.poll() is None:
                faults.tick()
                if time.monotonic() > end:
                    raise Stuck(
                        f"the submission has not ended after {self._limit:.0f} s: {err.text()[-2000:]}"
                    )
                time.sleep(0.03)
            code = stack.producer.returncode
            lines = [line for line in out.text().splitlines() if line.startswith("{")]
            last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
            if "Traceback" in err.text():
                raise AssertionError(f"the producer ended with a traceback: {err.text()[-3000:]}")
            if code == -signal.SIGKILL:
                self._tell("the producer is started again")
                continue
            if code == 1 and faults.cancelled and last.get("state") == "cancelled":
                faults.cancelled = False
                self._tell("it was cancelled and is submitted again")
                continue
            if code == 1 and not lines and _AWAY.search(err.text()):
                self._tell("Redis was away as the producer began; it is started again")
                time.sleep(0.5)
                continue
            if code != (3 if expected.poison else 0):
                raise AssertionError(
                    f"the producer ended with {code}: {out.text()[-500:]} {err.text()[-2000:]}"
                )
            self._tell(f"submitted: {last['chunks']} chunks, {last['dead']} dead")
            return last

    def _note(self, injection: Injection, done: Done) -> None:
        self._tell(f"{injection}{'' if done.hit else ' (nothing to do it to)'}")
        if done.hit:
            faults = self._result.faults
            faults[injection.fault] = faults.get(injection.fault, 0) + 1

    def _check_end(self, end: dict[str, Any], expected: Expected, before: Expected | None) -> None:
        counters = self._result.findings.counters
        if end["chunks"] != len(expected.chunks):
            counters.append(f"the summary counts {end['chunks']} chunks of {len(expected.chunks)}: {end}")
        if end["dead"] != len(expected.poison):
            counters.append(f"the summary counts {end['dead']} dead letters of {len(expected.poison)}")
        if before is not None and end["pruned"] is None:
            counters.append(f"nothing was pruned: {end['prune_note']}")

    def _check_exact(
        self,
        ledger: Ledger,
        since: int,
        expected: Expected,
        before: Expected | None,
        encoders: Encoders,
    ) -> None:
        """Nothing was lost on the way, so each chunk was staged, written and counted once.

        A job that was sealed ends without its producer. If that was killed there, its next start opens a job
        in which only the poison is left to do.
        """
        jobs = [job for job in ledger.jobs.list() if job.started >= since]
        jobs.sort(key=lambda job: job.started)
        poison = len(expected.poison)
        good = [chunk for chunk in encoders.staged(expected, before) if chunk.id not in expected.poison]
        wanted = [(len(good) + poison, len(good), poison, 0)] + [(poison, 0, poison, 0)] * (len(jobs) - 1)
        standing = [(job.staged, job.done, job.dead, job.lost) for job in jobs]
        if standing != wanted:
            self._result.findings.counters.append(
                f"the jobs {', '.join(job.id for job in jobs)} have staged, done, dead, lost {standing}, "
                f"not {wanted}"
            )
        texts = [chunk.text for chunk in good]
        # A copy has none, unless it was embedded after all: beside poison, or by a producer that began again.
        least, most = encoders.tokens(set(texts)), encoders.tokens(texts)
        seen = sum(job.tokens_seen for job in jobs)
        if before is None and not least <= seen <= most:
            self._result.findings.counters.append(f"the jobs have {seen} tokens, not {least} to {most}")

    def _settle(self) -> None:
        """Wait until the fleet has nothing to do and everything runs."""
        stack = self._stack
        for fault in self._lasting:
            fault.cancel()
            # Again, perhaps: it does no harm.
            fault.function()
        stack.heal()
        self._until_idle(lambda: _busy(stack))
        stack.wait_ready()
        # What a dead process had not acknowledged is delivered again after VISIBILITY_TIMEOUT: now.
        unacked = [f"{BROKER_PREFIX}unacked", f"{BROKER_PREFIX}unacked_index"]

        def busy() -> str:
            # Again and again: a message may come to stand there late, of a consumer that lost its connection.
            if waiting := stack.redis.zrange(unacked[1], 0, -1):
                stack.redis.zadd(unacked[1], dict.fromkeys(waiting, 0), xx=True)
                time.sleep(1)
            return _busy(stack) or ", ".join(key for key in unacked if stack.redis.exists(key))

        self._until_idle(busy)
        self._tell("quiet")

    def _until_idle(self, busy: Callable[[], str]) -> None:
        end = time.monotonic() + PATIENCE
        while what := busy():
            if time.monotonic() > end:
                raise Stuck(f"not quiet {PATIENCE:.0f} s after the job: {what}")
            time.sleep(0.1)


class _Faults:
    """Does faults when their moment has come, and ends them."""

    def __init__(
        self,
        stack: Stack,
        injections: tuple[Injection, ...],
        watch: Watch,
        note: Callable[[Injection, Done], None],
        lasting: list[threading.Timer],
    ) -> None:
        self._stack = stack
        self._left = list(injections)
        self._watch = watch
        self._note = note
        self._lasting = lasting
        self._last = time.monotonic()
        self.cancelled = False

    def tick(self) -> None:
        now = time.monotonic()
        if self._left and self._watch.started and self._is_due(self._left[0], now):
            injection = self._left.pop(0)
            # A server that is away has nothing that a fault could be done to.
            done = Done(hit=False)
            with contextlib.suppress(redis.RedisError):
                done = inject(self._stack, injection.fault, injection.arguments)
            self.cancelled |= injection.fault == "cancel" and done.hit
            self._note(injection, done)
            self._last = time.monotonic()
            if done.undo is not None:
                # Not here: the next fault may wait for a fleet that cannot start before this one ends.
                timer = threading.Timer(done.lasts, done.undo)
                timer.daemon = True
                timer.start()
                self._lasting.append(timer)

    def _is_due(self, injection: Injection, now: float) -> bool:
        return self._watch.progress >= injection.at or now - self._last > MOST_BETWEEN


class Watch:
    """Looks at the ledger all the time: how far the job is, and how often its batches are tried."""

    def __init__(self, stack: Stack) -> None:
        self._redis = stack.redis
        # By batch and model: attempts, each of all the batch's chunks.
        self._tries: dict[tuple[str, str], int] = {}
        self._changing = threading.Lock()
        self._expected = 1
        self._seen: set[bytes] = set()
        self._job = b""
        #: Share of the expected chunks that are done.
        self.progress = 0.0
        self.started = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def begin(self, expected: int) -> None:
        """Another phase, of so many chunks; the jobs of earlier ones do not count."""
        with self._changing:
            self._seen.add(self._job)
            self._expected, self.progress, self.started = expected, 0.0, False

    @property
    def attempts(self) -> int:
        """Texts taken to a model so far, every attempt counted; a batch too quick to be seen is not."""
        return sum(self._tries.values())

    def _look_on(self) -> None:
        while not self._ended.wait(0.04):
            # A look that began in the phase before would take that one's job for this one's.
            with self._changing, contextlib.suppress(redis.RedisError, ValueError):
                self._look()

    def _look(self) -> None:
        newest = self._redis.zrevrange(f"{PREFIX}jobs", 0, 0)
        if not newest or newest[0] in self._seen:
            return
        self._job = newest[0]
        job = self._job.decode()
        pipe = self._redis.pipeline(transaction=False)
        pipe.hmget(f"{PREFIX}job:{job}", "done", "staged")
        pipe.smembers(f"{PREFIX}job:{job}:open")
        (done, staged), batches = pipe.execute()
        self.started = self.started or int(staged or 0) > 0
        self.progress = int(done or 0) / self._expected
        names = sorted(name.decode() for name in batches)
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(f"{PREFIX}batch:{name}")
        for name, fields in zip(names, pipe.execute(), strict=True):
            for model in json.loads(fields.get(b"models", b"[]")):
                tries = max(1, int(fields.get(f"tries:embed.{model}".encode(), 1)))
                texts = tries * int(fields[b"chunks"])
                self._tries[name, model] = max(texts, self._tries.get((name, model), 0))


class _Reader:
    """Reads a pipe to its end, so that its writer never waits."""

    def __init__(self, stream: Any) -> None:
        self._lines: list[str] = []
        self._stream = stream
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            self._lines.extend(self._stream)

    def text(self) -> str:
        """What was read; waits for the end, unless the writer still lives."""
        self._thread.join(1)
        return "".join(self._lines)


def _busy(stack: Stack) -> str:
    """What is still to be done; empty if nothing is."""
    try:
        steps = {key.decode(): stack.redis.zcard(key) for key in stack.redis.keys(f"{PREFIX}steps:*")}
        queues = {
            key.decode(): stack.redis.llen(key)
            for key in stack.redis.scan_iter(match=f"{BROKER_PREFIX}*", _type="list", count=1000)
            if b"pidbox" not in key
        }
    except redis.RedisError as error:
        return f"Redis is away: {error}"
    return ", ".join(f"{name}: {count}" for name, count in (steps | queues).items() if count)


def diagnosis(stack: Stack) -> str:
    """What a person would look at first: open steps and leases, queues, processes, the logs' last words."""
    lines = [f"busy: {_busy(stack)}"]
    with contextlib.suppress(redis.RedisError):
        for key in sorted(stack.redis.keys(f"{PREFIX}batch:*"))[:10]:
            fields = {k.decode(): v.decode()[:80] for k, v in stack.redis.hgetall(key).items()}
            lines.append(
                f"{key.decode()}: { {k: v for k, v in fields.items() if k not in ('names', 'space')} }"
            )
        for key in stack.redis.keys(f"{PREFIX}steps:*"):
            lines.append(f"{key.decode()}: {stack.redis.zrange(key, 0, 5, withscores=True)}")
    lines += [f"{p.id}: {p.condition} {p.note}" for p in stack.alive()]
    targets = (
        "supervisor",
        "redis",
        "worker 0",
        "worker 1",
        "worker 2",
        "aggregator",
        "aggregator-2",
        "qdrant",
    )
    lines.append(", ".join(f"{target}: {stack.pid(target)}" for target in targets))
    for log in sorted(stack.logs().glob("*.log")):
        with contextlib.suppress(OSError):
            tail = log.read_text(errors="replace").splitlines()[-6:]
            lines += [f"--- {log.name}", *(line[:300] for line in tail)]
    return "\n".join(lines)


def _kept(stack: Stack, folder: Path) -> str:
    """Logs and data of a failed run, off the small disk if they are on one."""
    if stack.has_small_disk:
        aside = folder / "kept"
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(stack.data_dir, aside, ignore=shutil.ignore_patterns("filler", "*.sock"))
        stack.unmount()
    return re.sub(r"/$", "", str(folder))
