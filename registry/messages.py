"""Messages: a doorbell names a step, a request names its arguments. Plain JSON, checked on arrival."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import CodecError, OtherVersion
from registry.names import TASK_AGGREGATE, TASK_EMBED

#: Raised when a message's meaning changes; a worker sets a foreign version aside instead of guessing.
VERSION = 1
_BATCH = re.compile(r"^[a-z0-9-]{1,64}\.[0-9]{1,12}$")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    v: int = VERSION

    @classmethod
    def read(cls, arguments: dict[str, Any]) -> Self:
        """Check a message's arguments. Raises OtherVersion, and CodecError on anything that is not ours."""
        version = arguments.get("v", VERSION)
        if isinstance(version, int) and version != VERSION:
            raise OtherVersion(f"a {cls.__name__} of version {version}; this process speaks {VERSION}")
        try:
            return cls(**arguments)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise CodecError(f"not a {cls.__name__}: {where}: {first['msg']}") from None


class Ring(_Message):
    """A doorbell: there may be something to do for this step of this batch."""

    batch: str = Field(pattern=_BATCH.pattern)
    #: The queue that the step belongs to: `embed.<model>` or `aggregate`.
    step: str = Field(max_length=80)


class Request(_Message):
    """A request with an answer; arguments and answer lie in blobs."""

    #: Names the blob of the arguments, and of the answer.
    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    #: Unix seconds after which nobody waits for the answer.
    deadline: float


def form(task: str) -> type[Ring | Request]:
    """What a task's arguments are."""
    return Ring if task in (TASK_EMBED, TASK_AGGREGATE) else Request
