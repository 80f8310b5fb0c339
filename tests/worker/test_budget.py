"""Too little memory: smaller micro-batches, a budget that is remembered, and texts held harmless."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.errors import InfrastructureError
from registry.frames import pack_json, unpack_json
from registry.messages import Request
from registry.models import model
from registry.serving import served
from registry.settings import load_settings
from worker.answers import Answers
from worker.encoders import fake
from worker.encoders.base import MicroBatch
from worker.encoders.budget import FILE, FLOOR
from worker.encoders.device import Device, hardware
from worker.encoders.encode import encode
from worker.encoders.factory import warm_up
from worker.encoders.fake import FakeEncoder
from worker.encoders.learned import Learned

NAME = "qdrant-minilm-onnx"
#: A fake device has memory for so many padded tokens.
ROOM = 600


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Makes fake encoders that share a data directory."""

    def made(room: int = 0, cls: type[FakeEncoder] = FakeEncoder, **settings: Any) -> Any:
        given = load_settings(data_dir=tmp_path, fake_encoders=True, fake_memory_tokens=room, **settings)
        return cls(model(NAME), "", given)

    return made


def texts(count: int) -> list[str]:
    return [f"def f{i}(): return {i}" + " " * (i * 37 % 700) for i in range(count)]


def run(encoder: Any, given: Sequence[str], **options: Any) -> Any:
    options = {"device_lock": threading.Lock(), **options}
    return encode(encoder, given, "document", ["dense"], **options)


def test_a_device_too_small_for_the_budget_takes_all_texts_and_its_size_is_remembered(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = texts(300)
    small = make(ROOM)
    told: list[str] = []
    small.budget.told = lambda: told.append(small.budget.remark)
    first = run(small, given)
    np.testing.assert_array_equal(first.vectors["dense"].values, run(make(), given).vectors["dense"].values)
    assert first.rejected == {}
    # 4096 → 2048 → 1024 → 512: three micro-batches in a row that went through in parts only.
    assert small.budget.tokens == 512
    assert told[-1] == "out of memory: micro-batches of 512 tokens instead of 4096"
    assert len(told) == 3
    assert f"{NAME}/made-up float32 fake on cpu: micro-batches of 1024 tokens did not fit" in caplog.text
    assert first.notes["budget"] == 512
    # Each halving costs the passes above what fits; what waited was cut before it was tried.
    assert first.notes["oom"] == 3 + 2 + 1
    assert json.loads((tmp_path / FILE).read_text()) == {f"{NAME}/made-up float32 fake on cpu": 512}
    caplog.clear()
    restarted = make(ROOM)
    assert "micro-batches of 512 tokens instead of 4096, as more did not fit" in caplog.text
    assert str(tmp_path / FILE) in caplog.text
    assert restarted.budget.remark
    assert "oom" not in run(restarted, given).notes


def test_a_poisoned_text_lowers_no_budget(make: Any, tmp_path: Path) -> None:
    given, bad = texts(70), {3, 4, 33, 69}
    for row in bad:
        given[row] += fake.POISON_OOM
    encoder = make()
    part = run(encoder, given)
    assert set(part.rejected) == bad
    assert all("even alone" in why for why in part.rejected.values())
    assert encoder.budget.tokens == fake.BUDGET
    assert part.notes["oom"] > len(bad)
    assert not (tmp_path / FILE).exists()


def test_a_text_too_large_even_alone_is_the_only_one_rejected_and_says_so(make: Any) -> None:
    encoder = make(200)
    # 256 tokens are the model's limit.
    given = [*texts(20), "x" * 4000]
    part = run(encoder, given)
    assert part.rejected == {20: part.rejected[20]}
    assert part.rejected[20].startswith(
        "MemoryError: cpu has too little for this text of 256 tokens even alone"
    )


def test_memory_that_is_gone_is_held_against_no_text(make: Any) -> None:
    encoder = make(ROOM)
    run(encoder, texts(50))
    given = [f"{i} " + "word " * 80 for i in range(4)]
    # Nothing fits any more; then only a text as short as the probe does.
    for room in (1, 40):
        encoder._memory = room
        with pytest.raises(InfrastructureError, match="a known good one included"):
            run(encoder, given)
    encoder._memory = ROOM
    assert run(encoder, given).rejected == {}


class Once(FakeEncoder):
    """Has no memory for its first pass, as others hold it."""

    passes = 0

    def forward(self, batch: MicroBatch) -> Any:
        self.passes += 1
        if self.passes == 1:
            raise MemoryError("for now")
        return super().forward(batch)


def test_a_text_alone_is_tried_twice(make: Any) -> None:
    encoder = make(cls=Once)
    part = run(encoder, ["alone"])
    assert (part.rejected, part.notes["oom"], encoder.budget.tokens) == ({}, 1, fake.BUDGET)


class Meeting(FakeEncoder):
    """Two threads begin a pass each; the second's fails when the first has lowered the budget."""

    both: threading.Barrier
    lowered: threading.Event
    met: threading.local

    def forward(self, batch: MicroBatch) -> Any:
        if not hasattr(self.met, "yes"):
            self.met.yes = True
            if self.both.wait(60) == 0:
                assert self.lowered.wait(60)
        return super().forward(batch)


def test_two_threads_with_the_same_budget_halve_it_once(make: Any) -> None:
    encoder = make(fake.BUDGET // 2, cls=Meeting)
    encoder.both, encoder.lowered, encoder.met = threading.Barrier(2), threading.Event(), threading.local()
    parts: list[Any] = []
    told: list[int] = []

    def lowered() -> None:
        told.append(encoder.budget.tokens)
        encoder.lowered.set()

    encoder.budget.told = lowered

    def work() -> None:
        parts.append(run(encoder, ["word " * 150] * 40, device_lock=contextlib.nullcontext()))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [part.notes["oom"] for part in parts] == [1, 1]
    assert told == [fake.BUDGET // 2]


class Hungry(FakeEncoder):
    """Holds an array while a pass fails; notes when told to free whether it is gone."""

    held: Any = None
    gone: list[bool]

    def forward(self, batch: MicroBatch) -> Any:
        states = np.zeros(1000)
        self.held = weakref.ref(states)
        return super().forward(batch), states

    def finish(self, batch: MicroBatch, raw: Any, kinds: Any) -> Any:
        return super().finish(batch, raw[0], kinds)

    def free(self) -> None:
        self.gone.append(self.held() is None)


def test_memory_is_freed_only_when_the_failed_pass_has_let_go_of_it(make: Any) -> None:
    encoder = make(ROOM, cls=Hungry)
    encoder.gone = []
    run(encoder, [*texts(40), "x" + fake.POISON_OOM])
    assert len(encoder.gone) > 3
    assert all(encoder.gone)


class Crowded(FakeEncoder):
    """Its host has memory for the tokens of so many texts at once, and at first not even for one."""

    most = 1
    alone = 0

    def prepare(self, given: Sequence[str], side: Any) -> Any:
        self.alone += len(given) == 1
        if len(given) > self.most or self.alone == 1:
            raise MemoryError
        return super().prepare(given, side)


def test_too_little_memory_for_tokens_says_nothing_of_the_device(make: Any) -> None:
    encoder = make(cls=Crowded)
    assert run(encoder, texts(5)).rejected == {}
    assert encoder.budget.tokens == fake.BUDGET
    encoder.most = 0
    with pytest.raises(InfrastructureError, match="MemoryError"):
        run(encoder, texts(5))


def test_a_device_too_small_for_the_warm_up_does_not_speak_against_the_weights(make: Any) -> None:
    with pytest.raises(InfrastructureError, match="no memory for a text of 256 tokens"):
        warm_up(make(100), ["dense"])


def test_a_budget_set_by_hand_wins_and_is_not_remembered(make: Any, tmp_path: Path) -> None:
    run(make(ROOM), texts(300))
    before = (tmp_path / FILE).read_text()
    by_hand = make(ROOM, micro_batch_tokens=1024)
    assert by_hand.budget.tokens == 1024
    assert run(by_hand, texts(300)).rejected == {}
    assert by_hand.budget.tokens == 512
    assert (tmp_path / FILE).read_text() == before


def test_a_budget_ends_at_its_floor_and_texts_still_go_alone(make: Any) -> None:
    encoder = make(20, micro_batch_tokens=4 * FLOOR)
    for _ in range(2):
        assert run(encoder, ["word " * 12] * 40).rejected == {}
    assert encoder.budget.tokens == FLOOR


def test_a_request_that_finds_no_memory_is_answered_and_may_be_repeated(ledger: Ledger) -> None:
    request = Request(id="0" * 32, deadline=time.time() + 60)
    ledger.requests.ask(request.id, pack_json({}), 60)

    def work(_asked: dict[str, Any]) -> bytes:
        raise MemoryError

    assert Answers(ledger).give(request.model_dump(), work) == "answered"
    answer = unpack_json(ledger.requests.wait(request.id, 1) or b"")
    assert (answer["error"], answer["again"]) == ("InfrastructureError", True)
    assert "out of memory" in answer["message"]


@pytest.mark.parametrize("content", ['{"a": ', "[1]", '{"a": "many"}', '{"a": -1}', '{"a": true}'])
def test_a_damaged_file_is_said_ignored_and_replaced(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / FILE).write_text(content)
    encoder = make(ROOM)
    assert encoder.budget.tokens == fake.BUDGET
    assert "cannot be read" in caplog.text
    run(encoder, texts(300))
    assert make(ROOM).budget.tokens == 512


def test_a_place_that_cannot_be_written_is_said_and_ignored(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).with_suffix(".new").mkdir()
    encoder = make(ROOM)
    run(encoder, texts(300))
    assert encoder.budget.tokens == 512
    assert "is not remembered" in caplog.text


def _note(path: Path, worker: int, start: Any) -> None:
    start.wait(120)
    for n in range(100):
        Learned(path).note_least(f"{worker}-{n}", 100 + worker)
        Learned(path).note_least("all", 1000 - 100 * worker - n)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=_note, args=(tmp_path / FILE, n, start)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    found = json.loads((tmp_path / FILE).read_text())
    assert found.pop("all") == 1000 - 100 * 2 - 99
    assert found == {f"{worker}-{n}": 100 + worker for worker in range(3) for n in range(100)}


class Driver:
    """What of the CUDA driver is asked for."""

    def cuInit(self, _flags: int) -> int:
        return 0

    def cuDeviceGet(self, number: Any, index: int) -> int:
        number._obj.value = index
        return 0 if index < 2 else 101

    def cuDeviceGetName(self, name: Any, _room: int, number: Any) -> int:
        name.value = f"GPU {number.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, _number: Any) -> int:
        memory._obj.value = 80 << 30
        return 0


def test_a_device_is_known_by_what_it_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB" in hardware(Device("cpu"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Driver())
    assert hardware(Device("cuda:1")) == "GPU 1, 80 GiB"
    assert hardware(Device("cuda:2")) == "cuda:2"

    def none(_name: str) -> None:
        raise OSError("no driver")

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert hardware(Device("cuda:0")) == "cuda:0"


@pytest.mark.weights
def test_int8_takes_one_text_at_a_time_whatever_is_set(tmp_path: Path) -> None:
    onnx = pytest.importorskip("worker.encoders.onnx")
    given = load_settings(data_dir=tmp_path, micro_batch_tokens=4096)
    assert onnx._budget(served(model(NAME), "int8"), given, Device("cpu"), "float32").tokens == 1
    assert onnx._budget(model(NAME), given, Device("cpu"), "float32").tokens == 4096


#: A process whose address space ends a little above what the loaded model takes.
SHORT_OF_MEMORY = """
import json, resource, sys, threading
import numpy as np
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder

settings = load_settings(threads=1, device="cpu", data_dir=sys.argv[2])
encoder = load_encoder(sys.argv[1], "", settings, ["dense"])
texts = [f"text {i} " + "word " * (200 + i % 40) for i in range(64)]

def run():
    return encode(encoder, texts, "document", ["dense"], device_lock=threading.Lock())

direct = run().vectors["dense"].values
encoder.budget.tokens = 16384
# The library under numpy ends the process if it finds no memory for its buffers, which it then keeps.
np.ones((512, 512)) @ np.ones((512, 512))

def taken():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

if "onnx" in sys.argv[1]:
    encoder.forward(encoder.prepare(texts, "document").micro_batches[0])
after = taken()
encoder.free()
used = taken()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)
part = run()
print(json.dumps({
    "oom": part.notes["oom"],
    "budget": encoder.budget.tokens,
    "rejected": part.rejected,
    "freed": (after - used) >> 20,
    "worst": float((part.vectors["dense"].values * direct).sum(axis=1).min()),
}))
"""


@pytest.mark.weights
@pytest.mark.parametrize("name", [NAME, "all-miniLM-l6"])
def test_real_allocations_that_fail_lead_to_the_same_vectors(
    name: str, minilm_snapshot: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, name, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["oom"] >= 1
    assert found["rejected"] == {}
    assert found["budget"] == 8192
    assert found["worst"] > 0.99999
    # MiB of the arena; what torch took on a CPU is the C library's to give back.
    assert name != NAME or found["freed"] > 50
    (learned,) = json.loads((tmp_path / FILE).read_text()).items()
    assert learned[0].startswith(f"{name} float32 ")
    assert learned[1] == 8192
