"""Two lanes through one process: requests with an answer have a consumer and threads beside the steps'.

Celery takes all queues of a worker from one channel, and once steps fill its slots it takes nothing more,
whatever the order of the queues. A second channel has a prefetch count of its own, and its tasks find a
thread free. All else is Celery's and the same for both: the connection and its coming back, the screen,
events, acknowledgement.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from celery import Celery, bootsteps
from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult, TaskPool
from kombu.common import ignore_errors


class Lane:
    """Threads for some of the tasks, and how many of them are taken."""

    def __init__(self, executor: ThreadPoolExecutor, threads: int) -> None:
        self.executor = executor
        self.threads = threads
        self._taken = 0
        self._counting = threading.Lock()

    def submit(
        self, target: Callable[..., Any], args: Any, kwargs: Any, callback: Any, accept: Any
    ) -> ApplyResult:
        """Run a task as Celery's pool does."""
        self._count(1)

        def counted(*given: Any, **named: Any) -> Any:
            try:
                return target(*given, **named)
            finally:
                # Before Celery acknowledges: nothing later wakes the consumer.
                self._count(-1)

        return ApplyResult(self.executor.submit(apply_target, counted, args, kwargs, callback, accept))

    def bound(self, channel: Any) -> None:
        """Have a channel consume only while a thread is free. Its prefetch count alone would not do: after a
        lost connection it knows nothing of the tasks that go on."""
        qos = channel.qos
        qos.can_consume = lambda: self._taken < self.threads and type(qos).can_consume(qos)

    def _count(self, change: int) -> None:
        with self._counting:
            self._taken += change


def install(app: Celery, queues: Sequence[str], threads: int, answers: Callable[[str], bool]) -> type[Any]:
    """Give requests a lane of their own in the application's worker; returns the pool that it is to have.

    Parameters:
        queues: where the requests come from; the worker itself must not be told to consume from them.
        threads: for requests alone.
        answers: whether the task of that name answers requests.
    """

    class Pool(TaskPool):  # type: ignore[misc]
        """Celery's pool of threads, and further threads for requests."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.steps = Lane(self.executor, self.limit)
            self.requests = Lane(ThreadPoolExecutor(threads), threads)

        def on_apply(
            self,
            target: Callable[..., Any],
            args: Any = None,
            kwargs: Any = None,
            callback: Any = None,
            accept_callback: Any = None,
            **_: Any,
        ) -> ApplyResult:
            """As Celery's; a tracer's first argument is the task's name."""
            lane = self.requests if answers(args[0]) else self.steps
            return lane.submit(target, args, kwargs, callback, accept_callback)

        def on_stop(self) -> None:
            """Wait for the tasks of both lanes."""
            self.requests.executor.shutdown(cancel_futures=True)
            super().on_stop()

    class Requests(bootsteps.StartStopStep):  # type: ignore[misc]
        """Consumes requests from a channel of their own."""

        requires: ClassVar[set[str]] = {"celery.worker.consumer.tasks:Tasks"}
        consumer: Any = None

        def start(self, parent: Any) -> None:
            amqp, pool = parent.app.amqp, parent.pool
            channel = parent.connection.channel()
            self.consumer = amqp.TaskConsumer(
                channel,
                queues=[amqp.queues[name] for name in queues],
                on_decode_error=parent.on_decode_error,
                on_message=parent.create_task_handler(),
                prefetch_count=pool.requests.threads,
            )
            pool.requests.bound(channel)
            # In place of Celery's bound, which counts tasks of both lanes.
            pool.steps.bound(parent.task_consumer.channel)
            self.consumer.consume()

        def stop(self, parent: Any) -> None:
            # The channel stays open for acknowledgements, and ends with its connection.
            if self.consumer is not None:
                ignore_errors(parent, self.consumer.cancel)

    app.steps["consumer"].add(Requests)
    return Pool
