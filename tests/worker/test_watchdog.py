"""The watchdog: what is stuck is ended, and what only waits is left alone. Its time is told to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.errors import LedgerFull, LedgerUnavailable
from registry.models import model
from registry.progress import Turn, beat, waiting
from registry.settings import Settings, load_settings
from worker.embedder import EmbedWorker
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder
from worker.watchdog import LAST_SECONDS, Watchdog

EMBED, QUERY = "embed.m", "query.m"
LOOK = 5.0


class Scene:
    """A process as the watchdog sees it: how long its queues are, whether it is well, why it was ended."""

    def __init__(self) -> None:
        self.settings = load_settings(stuck_seconds=60, hang_seconds=100)
        self.waiting: dict[str, int] = {EMBED: 0, QUERY: 0}
        self.trouble: Exception | None = None
        self.well = True
        self.ended: list[str] = []
        self.dog = Watchdog(
            self.settings, [[EMBED], [QUERY]], self._wait, lambda: self.well, self.ended.append
        )

    def _wait(self, queue: str) -> int:
        if self.trouble is not None:
            raise self.trouble
        return self.waiting[queue]

    def pass_time(self, seconds: float, meanwhile: Callable[[], Any] = lambda: None) -> None:
        """Looks and ticks as a process makes them, until it is ended; `meanwhile` happens before each."""
        for _ in range(int(seconds / LOOK)):
            if not self.ended:
                meanwhile()
                self.dog.tick(LOOK)
                self.dog.look(LOOK)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_messages_that_an_idle_process_does_not_take_end_it(scene: Scene) -> None:
    scene.waiting[EMBED] = 3
    scene.pass_time(60)
    assert not scene.ended
    scene.pass_time(30)
    assert EMBED in scene.ended[0]
    assert "V5_STUCK_SECONDS" in scene.ended[0]


def test_queries_now_and_then_do_not_hide_that_bulk_work_is_not_taken(scene: Scene) -> None:
    scene.waiting[EMBED] = 3
    turns = iter(range(10_000))

    def query_every_fourth_look() -> None:
        if next(turns) % 4 == 0:
            scene.dog.received(QUERY)

    scene.pass_time(300, query_every_fourth_look)
    assert EMBED in scene.ended[0]


@pytest.mark.parametrize(("served", "stuck"), [(QUERY, EMBED), (EMBED, QUERY)])
def test_work_from_one_consumer_does_not_hide_that_the_other_has_stopped(
    scene: Scene, served: str, stuck: str
) -> None:
    scene.waiting = {served: 50, stuck: 1}

    def serve() -> None:
        scene.dog.received(served)
        beat()

    with scene.dog.working("a task", served):
        scene.pass_time(300, serve)
    assert stuck in scene.ended[0]


def test_a_queue_beside_that_of_a_consumer_s_work_is_no_alarm(scene: Scene) -> None:
    scene.waiting[EMBED] = scene.waiting["embed.other"] = 50
    together = [[EMBED, "embed.other"], [QUERY]]
    scene.dog = Watchdog(scene.settings, together, scene._wait, lambda: True, scene.ended.append)
    with scene.dog.working("v5.embed a.1", EMBED):
        scene.pass_time(300, beat)
    assert not scene.ended


def _others_empty_the_queue(scene: Scene, turn: int) -> None:
    scene.waiting[EMBED] = 0 if turn % 8 == 0 else 3


def _it_takes_its_share(scene: Scene, turn: int) -> None:
    scene.waiting[EMBED] = 50
    if turn % 10 == 0:
        scene.dog.received(EMBED)


def _nothing_waits(scene: Scene, turn: int) -> None:
    scene.waiting[EMBED] = 0


def _redis_is_away(scene: Scene, turn: int) -> None:
    scene.waiting[EMBED] = 50
    scene.trouble = LedgerUnavailable("away") if turn % 8 == 0 else None


def _redis_is_full(scene: Scene, turn: int) -> None:
    scene.waiting[EMBED] = 50
    scene.trouble = LedgerFull("full")


def _it_is_not_ready(scene: Scene, turn: int) -> None:
    scene.waiting[EMBED] = 50
    scene.well = False


@pytest.mark.parametrize(
    "course",
    [
        _others_empty_the_queue,
        _it_takes_its_share,
        _nothing_waits,
        _redis_is_away,
        _redis_is_full,
        _it_is_not_ready,
    ],
)
def test_it_is_no_alarm_while(scene: Scene, course: Callable[[Scene, int], None]) -> None:
    turns = iter(range(10_000))
    scene.pass_time(1000, lambda: course(scene, next(turns)))
    assert not scene.ended


def test_a_long_queue_is_no_alarm_while_it_works_on_a_batch(scene: Scene) -> None:
    scene.waiting[EMBED] = 50
    with scene.dog.working("v5.embed a.1", EMBED):
        scene.pass_time(1000, beat)
    assert not scene.ended


def test_a_process_that_slept_is_given_its_time_after_waking(scene: Scene) -> None:
    scene.waiting[EMBED] = 50
    scene.dog.look(LOOK)
    # Its caller counts at most V5_ALIVE_SECONDS, however long the sleep.
    scene.dog.look(scene.settings.alive_seconds)
    scene.pass_time(30)
    assert not scene.ended


def test_a_step_without_progress_ends_the_process_and_one_with_progress_does_not(scene: Scene) -> None:
    with scene.dog.working("v5.embed a.1", EMBED):
        scene.pass_time(1000, beat)
        assert not scene.ended
        scene.pass_time(95)
        assert not scene.ended
        scene.pass_time(10)
    assert "v5.embed a.1 has made no progress" in scene.ended[0]


def test_each_forward_pass_is_progress_and_waiting_for_the_device_is_none_to_be_held_to(
    scene: Scene, settings: Settings, eventually: Callable[..., Any]
) -> None:
    """Two threads as a worker has them: one at a long batch, one that never gets the device meanwhile."""
    worker = EmbedWorker(settings, "qdrant-minilm-onnx")
    device = worker._device
    assert isinstance(device, Turn)
    waits, done = threading.Event(), threading.Event()

    def starved() -> None:
        with scene.dog.working("starved", EMBED):
            waits.set()
            with device:
                done.set()

    with ExitStack() as stack:
        stack.enter_context(scene.dog.working("long", EMBED))
        stack.enter_context(device)
        thread = threading.Thread(target=starved)
        thread.start()
        waits.wait(10)
        eventually(lambda: any(work.waits for work in scene.dog._works))
        scene.pass_time(1000, beat)
        assert not scene.ended
        # Whoever has the device is held to go on.
        scene.pass_time(110)
        assert "long has made no progress" in scene.ended[0]
    thread.join(10)
    assert done.is_set()
    worker.ledger.close()


def test_threads_that_all_wait_for_each_other_end_the_process(scene: Scene) -> None:
    with scene.dog.working("v5.embed a.1", EMBED), waiting():
        scene.pass_time(110)
    assert "v5.embed a.1 has made no progress" in scene.ended[0]


def test_an_encoding_is_held_to_its_micro_batches(scene: Scene, settings: Settings) -> None:
    """The real loop over a real encoder: a micro-batch takes a while on the device and after it, and all of
    them much longer."""
    encoder = FakeEncoder(model("qdrant-minilm-onnx"), "", settings)
    forward, finish = encoder.forward, encoder.finish
    passes: list[int] = []

    def slow(batch: Any) -> Any:
        passes.append(len(batch.rows))
        scene.pass_time(60)
        return forward(batch)

    def slow_to_finish(*arguments: Any) -> Any:
        scene.pass_time(60)
        return finish(*arguments)

    encoder.forward, encoder.finish = slow, slow_to_finish  # type: ignore[method-assign]
    texts = [f"{i} " + "word " * 2000 for i in range(40)]
    with scene.dog.working("v5.embed a.1", EMBED):
        part = encode(encoder, texts, "document", ["dense"], device_lock=Turn())
    assert not scene.ended
    assert len(passes) * 60 > scene.settings.hang_seconds
    assert np.isfinite(part.vectors["dense"].values).all()  # type: ignore[union-attr]


def test_a_main_loop_that_ended_by_itself_leaves_threads_some_time_and_no_more(scene: Scene) -> None:
    scene.pass_time(1000)
    scene.dog.ended()
    scene.pass_time(LAST_SECONDS - LOOK)
    assert not scene.ended
    scene.pass_time(LOOK)
    assert "main loop has ended" in scene.ended[0]


@pytest.mark.parametrize(
    ("asked", "celery_says", "code"),
    [(True, 0, 0), (True, None, 0), (False, 0, 0), (False, None, 70), (False, 1, 1)],
)
def test_an_end_without_having_been_asked_is_never_exit_code_0(
    settings: Settings,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool,
    celery_says: Any,
    code: int,
) -> None:
    class Looped:
        """Celery's worker, at the end of its main loop; its own exit code is None where it ends silently."""

        exitcode = celery_says

        def start(self) -> None:
            if asked:
                worker._shutting_down()

    worker = EmbedWorker(settings, "qdrant-minilm-onnx")
    # Its timer would end this process.
    monkeypatch.setattr(worker.watchdog, "start", lambda: None)
    monkeypatch.setattr(type(worker.app), "Worker", lambda *_, **__: Looped())
    assert worker.run() == code
    worker.ledger.close()
