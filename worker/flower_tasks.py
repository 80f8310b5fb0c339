"""What Flower says about a task: job, batch, model and step instead of a message's arguments."""

from __future__ import annotations

from typing import Any

from registry.names import TASK_AGGREGATE, TASK_EMBED, request_model, step_model

#: Columns of the task list. `args` holds whose task it is, `kwargs` what it does: two, because Flower cuts
#: wide cells. The uuid is the link to the task's own page.
COLUMNS = "args,kwargs,state,result,runtime,received,worker,uuid"


def format_task(task: Any) -> Any:
    """Flower's hook: a copy of a task (`celery.events.state.Task`), changed for showing.

    Flower's search looks into what was sent: `<job>.<n> <step>`, not into what is shown.
    """
    described = describe(task.name or "", task.kwargs or "", task.routing_key or "")
    if described is not None:
        task.args, task.kwargs = described
    if task.result:
        # The outcome is a word; the event carries its repr.
        task.result = task.result.strip("'\"")
    return task


def describe(name: str, arguments: str, queue: str) -> tuple[str, str] | None:
    """Whose task it is and what it does; None for one that is not ours or whose arguments were not seen.

    `arguments` is what the message says of itself: `<job>.<n> <step>`, or the id of a request. `queue` is
    empty where the event of sending was lost.
    """
    if not arguments:
        return None
    if name in (TASK_EMBED, TASK_AGGREGATE):
        batch, _, step = arguments.partition(" ")
        job, _, number = batch.rpartition(".")
        model = step_model(step)
        return f"job {job} · batch {number}", f"{model} · embed" if model else step
    if name.startswith("v5."):
        model, step = request_model(queue), name.removeprefix("v5.").replace("_", " ").replace(".", " · ")
        return f"request {arguments[:8]}", f"{model} · {step}" if model else step
    return None
