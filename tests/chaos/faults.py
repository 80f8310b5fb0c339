"""The faults, each by its name in a schedule. All of them are done to real processes, sockets and keys."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger.doorbell import Doorbell
from registry.celery_app import make_app
from registry.names import BROKER_PREFIX, PREFIX
from tests.chaos.stack import Stack

#: What begins every blob that has a checksum.
_MAGIC = b"V5b1"
#: Flips a byte of a blob that is there; SETRANGE would make one that is not.
_FLIP = """
local blob = redis.call('GET', KEYS[1])
if not blob then return 0 end
local at = math.floor(tonumber(ARGV[1]) * #blob)
redis.call('SETRANGE', KEYS[1], at, string.char(bit.bxor(string.byte(blob, at + 1), 255)))
return 1
"""


@dataclass(frozen=True)
class Done:
    """What a fault did; `undo` ends it after `lasts` seconds."""

    #: False: there was nothing to do it to, such as a blob to delete.
    hit: bool = True
    lasts: float = 0.0
    undo: Callable[[], object] | None = None


def inject(stack: Stack, fault: str, arguments: dict[str, Any]) -> Done:
    """Do a fault to a stack."""
    return FAULTS[fault](stack, **arguments)


def _kill(stack: Stack, target: str) -> Done:
    return Done(hit=stack.signal(target, signal.SIGKILL) > 0)


def _stop(stack: Stack, target: str, seconds: float) -> Done:
    pid = stack.signal(target, signal.SIGSTOP)

    def go_on() -> None:
        # Whatever took its place has not been stopped.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    return Done(lasts=seconds, undo=go_on) if pid else Done(hit=False)


def _kill_producer(stack: Stack) -> Done:
    return _kill(stack, "producer")


def _kill_supervisor(stack: Stack) -> Done:
    done = _kill(stack, "supervisor")
    stack.up()
    return done


def _restart_redis(stack: Stack) -> Done:
    return _kill(stack, "redis")


def _wipe_redis(stack: Stack) -> Done:
    """It loses its disk: the log goes before it is started again."""
    pid = stack.signal("redis", signal.SIGSTOP)
    shutil.rmtree(stack.redis_files() / "appendonlydir", ignore_errors=True)
    if pid:
        os.kill(pid, signal.SIGKILL)
    return Done(hit=pid > 0)


def _cancel(stack: Stack) -> Done:
    newest = stack.redis.zrevrange(f"{PREFIX}jobs", 0, 0)
    if not newest:
        return Done(hit=False)
    done = stack.fleet.v5("cancel", newest[0].decode(), timeout=60)
    return Done(hit=done.returncode == 0)


def _queues(stack: Stack) -> list[bytes]:
    found = stack.redis.scan_iter(match=f"{BROKER_PREFIX}*", _type="list", count=1000)
    return [key for key in found if b"reply" not in key]


def _delete_messages(stack: Stack) -> Done:
    queues = _queues(stack)
    kept = [f"{BROKER_PREFIX}unacked", f"{BROKER_PREFIX}unacked_index"]
    return Done(hit=bool(stack.redis.unlink(*queues, *kept)))


def _repeat_messages(stack: Stack, times: int) -> Done:
    """Every message that waits comes again, and every step of every open batch is rung."""
    for queue in _queues(stack):
        waiting = stack.redis.lrange(queue, 0, 200)
        if waiting:
            stack.redis.lpush(queue, *(waiting * times))
    steps = [key.decode() for key in stack.redis.scan_iter(match=f"{PREFIX}steps:*", count=1000)]
    batches = [key.decode() for key in stack.redis.scan_iter(match=f"{PREFIX}batch:*", count=1000)]
    app = make_app(stack.settings)
    bell = Doorbell(app, stack.settings)
    for batch in batches:
        for step in steps:
            for _ in range(times):
                bell.ring(batch.removeprefix(f"{PREFIX}batch:"), step.removeprefix(f"{PREFIX}steps:"))
    app.close()
    return Done(hit=bool(batches))


def _flush_broker(stack: Stack) -> Done:
    return Done(hit=bool(stack.redis.unlink(*stack.redis.keys(f"{BROKER_PREFIX}*"))))


def _blobs(stack: Stack, *, text: bool) -> list[bytes]:
    found = sorted(stack.redis.scan_iter(match=f"{PREFIX}blob:*:*:*", count=1000))
    # v5:blob:BATCH:text:TOKEN and v5:blob:BATCH:MODEL:TOKEN.
    ours = [key for key in found if key.split(b":")[2] not in (b"request", b"answer")]
    return [key for key in ours if (key.split(b":")[3] == b"text") == text]


def _delete(text: bool) -> Callable[..., Done]:
    def delete(stack: Stack, pick: float, at: float, most: int = 1) -> Done:
        chosen = _chosen(_blobs(stack, text=text), pick, most)
        return Done(hit=bool(chosen) and bool(stack.redis.unlink(*chosen)))

    return delete


def _corrupt(text: bool) -> Callable[..., Done]:
    def corrupt(stack: Stack, pick: float, at: float, most: int = 1) -> Done:
        chosen = _chosen(_blobs(stack, text=text), pick, most)
        return Done(hit=sum(stack.redis.eval(_FLIP, 1, key, at) for key in chosen) > 0)

    return corrupt


def _chosen(keys: list[bytes], pick: float, most: int) -> list[bytes]:
    return random.Random(pick).sample(keys, min(most, len(keys)))


def _delay(stack: Stack, link: str, seconds: float, lasts: float) -> Done:
    proxy = stack.proxies[link]
    proxy.delay(seconds)
    return Done(lasts=lasts, undo=lambda: proxy.delay(0))


def _cut(stack: Stack, link: str, after: int, direction: Any) -> Done:
    stack.proxies[link].cut(after, direction)
    return Done()


def _refuse(stack: Stack, link: str, lasts: float) -> Done:
    """A link that is down: what stands is cut, and nothing new gets through."""
    proxy = stack.proxies[link]
    proxy.refuse(True)
    proxy.cut()
    return Done(lasts=lasts, undo=lambda: proxy.refuse(False))


def _black_hole(stack: Stack, link: str, lasts: float) -> Done:
    proxy = stack.proxies[link]
    proxy.blackhole(True)
    return Done(lasts=lasts, undo=lambda: proxy.blackhole(False))


def _late(stack: Stack, lasts: float) -> Done:
    """What the second aggregator writes is held up on its way, past its patience and perhaps past newer
    writes of the first."""
    return _black_hole(stack, "grpc-2", lasts)


def _corrupt_on_the_way(stack: Stack, n: int, bit: int, direction: Any) -> Done:
    stack.proxies["redis"].corrupt(n, direction, after=_MAGIC, bit=bit)
    return Done()


def _corrupt_greeting(stack: Stack) -> Done:
    """The first byte of the next connection by gRPC: no HTTP/2 server takes that for a greeting."""
    proxy = stack.proxies["grpc"]
    proxy.cut()
    proxy.corrupt(1, "up", after=b"")
    return Done()


def _restart_qdrant(stack: Stack) -> Done:
    return _kill(stack, "qdrant")


def _qdrant(number: signal.Signals) -> Callable[..., Done]:
    def fault(stack: Stack, lasts: float) -> Done:
        pid = stack.signal("qdrant", number)
        return Done(hit=pid > 0, lasts=lasts, undo=lambda: stack.signal("qdrant", signal.SIGHUP))

    return fault


def _disk_full(stack: Stack, leave: int, lasts: float) -> Done:
    """All but `leave` MiB of the data directory's disk is taken."""
    if not stack.has_small_disk:
        return Done(hit=False)
    filler = stack.data_dir / "filler"
    free = shutil.disk_usage(stack.data_dir).free
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
        for _ in range(max(0, (free >> 20) - leave) + (leave == 0)):
            out.write(bytes(1 << 20))
    return Done(lasts=lasts, undo=lambda: filler.unlink(missing_ok=True))


#: Every fault by its name.
FAULTS: dict[str, Callable[..., Done]] = {
    "kill": _kill,
    "stop": _stop,
    "kill producer": _kill_producer,
    "kill supervisor": _kill_supervisor,
    "restart redis": _restart_redis,
    "wipe redis": _wipe_redis,
    "cancel": _cancel,
    "delete messages": _delete_messages,
    "repeat messages": _repeat_messages,
    "flush broker": _flush_broker,
    "delete text": _delete(text=True),
    "delete vectors": _delete(text=False),
    "corrupt text": _corrupt(text=True),
    "corrupt vectors": _corrupt(text=False),
    "disk full": _disk_full,
    "delay": _delay,
    "cut": _cut,
    "refuse": _refuse,
    "black hole": _black_hole,
    "late": _late,
    "corrupt on the way": _corrupt_on_the_way,
    "corrupt greeting": _corrupt_greeting,
    "restart qdrant": _restart_qdrant,
    "qdrant full": _qdrant(signal.SIGUSR1),
    "qdrant read-only": _qdrant(signal.SIGUSR2),
}
