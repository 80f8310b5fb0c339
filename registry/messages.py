"""Messages: a doorbell names a step, a request names its arguments. Plain JSON, checked on arrival."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import CodecError

#: Raised when a message's meaning changes; a worker sets a foreign version aside instead of guessing.
VERSION = 1
_BATCH = re.compile(r"^[a-z0-9-]{1,64}\.[0-9]{1,12}$")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    v: int = VERSION

    @classmethod
    def read(cls, arguments: dict[str, Any]) -> Self:
        """Check a message's arguments. Raises CodecError on anything that is not ours."""
        try:
            message = cls(**arguments)
        except (ValidationError, TypeError) as error:
            raise CodecError(f"not a {cls.__name__}: {str(error).splitlines()[0]}") from None
        if message.v != VERSION:
            raise CodecError(f"a {cls.__name__} of version {message.v}; this process speaks {VERSION}")
        return message


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
