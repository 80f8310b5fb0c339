"""What stands around our messages on the broker: read strictly, and made anew of nothing but what we know.

Celery and kombu trust a message as far as it can be read: one of the wrong form ends a worker, a compressed
one is inflated without a bound, one with a date is held in memory, and one with callbacks makes a worker
send messages of its own. So nothing reaches them as it came.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from registry.errors import CodecError, OtherVersion
from registry.messages import form

#: A doorbell or a request takes about 1 KiB.
MOST_TASK = 64 * 1024
#: Celery's own: what workers answer about themselves, events, remote control.
MOST_OTHER = 1 << 20
#: Characters of a refused message that are shown.
SHOWN = 500

Kind = Literal[
    "too large",
    "not a message",
    "compressed",
    "not JSON",
    "not a task",
    "unknown task",
    "more than a task",
    "wrong arguments",
    "other version",
    "not a command",
]


class Refusal(CodecError):
    """A message that is not let in, and which kind of wrong it is."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        self.kind: Kind = kind


@dataclass(frozen=True)
class RefusedMessage:
    """A message that was not let in."""

    #: The queue it was in, or the channel it was heard on.
    queue: str
    kind: Kind
    #: In words.
    why: str
    bytes: int
    #: Its first characters, printable.
    sample: str
    #: Unix seconds.
    at: float


def printable(text: str) -> str:
    """The first characters of a text, those that could steer a terminal or break a line escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:SHOWN])
    return shown[:SHOWN]


class _Form(BaseModel):
    """Fields that are not named are left out of what is made of it."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, value: object, kind: Kind) -> Self:
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"]) or "it"
            raise Refusal(kind, f"{where}: {first['msg']}") from None


class _Delivery(_Form):
    exchange: str = Field(max_length=200)
    routing_key: str = Field(max_length=200)


class _Properties(_Form):
    delivery_info: _Delivery
    body_encoding: Literal["base64"]
    #: Names the message among those that are not acknowledged.
    delivery_tag: str = Field(pattern=r"^[0-9A-Za-z-]{1,64}$")


class _Envelope(_Form):
    """kombu's."""

    body: str
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    content_type: Literal["application/json"] = Field(alias="content-type")
    headers: dict[str, JsonValue]
    properties: _Properties

    def content(self) -> Any:
        """The JSON value inside."""
        try:
            return from_json(base64.b64decode(self.body, validate=True), allow_inf_nan=False)
        except ValueError as error:
            raise Refusal("not JSON", f"its body: {error}") from None

    def sealed(self, headers: dict[str, Any], content: Any) -> bytes:
        """The message anew, with these headers around this JSON value."""
        fields = self.model_dump(by_alias=True)
        body = base64.b64encode(json.dumps(content).encode()).decode()
        return json.dumps({**fields, "headers": headers, "body": body}).encode()


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() is None:
        raise ValueError("a moment without its offset from UTC")
    return text


class _Headers(_Form):
    """What Celery's protocol 2 says of a task and has no effect but in logs, events and on expiry."""

    task: str = Field(pattern=r"^[a-z0-9._-]{1,100}$")
    id: str = Field(pattern=r"^[0-9A-Za-z-]{1,64}$")
    root_id: str | None = Field(None, pattern=r"^[0-9A-Za-z-]{1,64}$")
    parent_id: str | None = Field(None, pattern=r"^[0-9A-Za-z-]{1,64}$")
    expires: Annotated[str, Field(max_length=40), AfterValidator(_moment)] | None = None
    argsrepr: str | None = Field(None, max_length=1100)
    kwargsrepr: str | None = Field(None, max_length=1100)
    origin: str | None = Field(None, max_length=300)
    ignore_result: bool = True
    redelivered: bool = False


class _Plain(_Form):
    """What else Celery can be asked for, in the headers or beside the arguments: nothing of it is wanted."""

    eta: None = None
    shadow: None = None
    group: None = None
    group_index: None = None
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None
    stamped_headers: None = None
    stamps: dict[str, JsonValue] | None = Field(None, max_length=0)
    timelimit: list[None] | None = None
    retries: Literal[0] | None = None
    replaced_task_nesting: Literal[0] | None = None


class _Broadcast(_Form):
    """The headers of remote control."""

    #: Celery's logical clock, which every process takes over where it is ahead of its own.
    clock: int | None = Field(None, ge=0, lt=1 << 53)
    expires: float | None = None
    ticket: str | None = Field(None, max_length=64)


class _Command(_Form):
    """A remote control command. Who is meant may be a glob; a regular expression can run for ever."""

    method: str = Field(max_length=100)
    arguments: dict[str, JsonValue] | None = None
    destination: list[str] | None = None
    pattern: str | None = Field(None, max_length=300)
    matcher: Literal["glob"] | None = None
    ticket: str | None = Field(None, max_length=64)
    reply_to: _Delivery | None = None


def _opened(raw: bytes, most: int) -> _Envelope:
    if len(raw) > most:
        raise Refusal("too large", f"{len(raw)} bytes; at most {most} are read")
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal("not a message", f"it is not JSON: {error}") from None
    match value:
        case {"headers": {"compression": packed}} if packed:
            raise Refusal("compressed", "it is compressed, which none of ours is; it was not unpacked")
        case {"content-type": kind} if kind != "application/json":
            raise Refusal("not JSON", f"its body is {str(kind)[:80]}, which was not looked at")
    return _Envelope.read(value, "not a message")


def read_task(raw: bytes, queue: str, tasks: Container[str]) -> bytes:
    """A message of a queue, made anew; `tasks` are those that this process serves. Raises Refusal."""
    envelope = _opened(raw, MOST_TASK)
    to = envelope.properties.delivery_info
    if (to.exchange, to.routing_key) != ("", queue):
        raise Refusal("not a message", "it is addressed to another queue")
    headers = _Headers.read(envelope.headers, "not a task")
    match envelope.content():
        case [[], dict() as arguments, dict() as embedded]:
            pass
        case _:
            raise Refusal("not a task", "its body is not [[], {arguments}, {…}]")
    # Celery's own tasks run whatever they are given.
    if headers.task.startswith("celery.") or headers.task not in tasks:
        raise Refusal("unknown task", f"no task {headers.task} is served here")
    for asked in (envelope.headers, embedded):
        _Plain.read(asked, "more than a task")
    try:
        message = form(headers.task).read(arguments)
    except OtherVersion as error:
        raise Refusal("other version", str(error)) from None
    except CodecError as error:
        raise Refusal("wrong arguments", str(error)) from None
    if getattr(message, "step", queue) != queue:
        raise Refusal("wrong arguments", "it rings a step of another queue")
    return envelope.sealed(headers.model_dump(), [[], message.model_dump(), {}])


def read_command(raw: bytes) -> bytes:
    """A remote control command, made anew. Raises Refusal."""
    envelope = _opened(raw, MOST_OTHER)
    headers = _Broadcast.read(envelope.headers, "not a command")
    command = _Command.read(envelope.content(), "not a command")
    return envelope.sealed(headers.model_dump(), command.model_dump())


def read_other(raw: bytes) -> bytes:
    """An event, or an answer to a command: only its envelope is read, and made anew. Raises Refusal."""
    envelope = _opened(raw, MOST_OTHER)
    headers = _Broadcast.read(envelope.headers, "not a message")
    return envelope.sealed({**envelope.headers, **headers.model_dump(exclude_unset=True)}, envelope.content())


def read_kept(raw: bytes) -> bytes:
    """kombu's note of an unacknowledged message, as it is: what is put back is read again when it is taken.
    Raises Refusal."""
    if len(raw) > MOST_OTHER:
        raise Refusal("too large", f"{len(raw)} bytes; at most {MOST_OTHER} are put back")
    try:
        value = from_json(raw)
    except ValueError as error:
        raise Refusal("not a message", f"it is not JSON: {error}") from None
    match value:
        case [{"headers": dict(), "properties": {"delivery_info": dict()}}, "", str()]:
            return raw
    raise Refusal("not a message", "it is not an unacknowledged message of a queue")
