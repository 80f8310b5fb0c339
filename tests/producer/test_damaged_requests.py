"""A request to the store whose arguments or answer are damaged on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ledger.blobs import answer_key, request_key
from ledger.ledger import Ledger
from producer.fleet import MOST_DAMAGED, Fleet
from registry.errors import CodecError
from registry.frames import pack_json
from registry.settings import Settings
from worker.answers import Answers


def damaged(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


@pytest.fixture
def fleet(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], Fleet]:
    """A fleet that answers `{"seen": …}` at once; in each answer, what is said is damaged."""

    def make(damage: list[str]) -> Fleet:
        made, answers = Fleet(settings), Answers(ledger)

        def send(_task: str, kwargs: dict[str, Any], **_: Any) -> None:
            what, redis, identity = damage.pop(0), ledger.redis, kwargs["id"]
            if what == "arguments":
                redis.set(request_key(identity), damaged(redis.get(request_key(identity))))
            assert answers.give(kwargs, lambda asked: pack_json({"seen": asked})) == "answered"
            if what == "answer":
                redis.lset(answer_key(identity), 0, damaged(redis.lindex(answer_key(identity), 0)))

        # In the broker's place.
        monkeypatch.setattr(made.app, "send_task", send)
        return made

    return make


def test_it_is_asked_again_from_the_beginning(fleet: Callable[[list[str]], Fleet], ledger: Ledger) -> None:
    made = fleet(["arguments", "answer", ""])
    assert made._store("describe", {"collection": "c"}) == {"seen": {"collection": "c"}}
    made.close()
    assert not ledger.redis.keys("v5:blob:*")


def test_one_that_is_damaged_each_time_is_said(fleet: Callable[[list[str]], Fleet]) -> None:
    made = fleet(["answer"] * (MOST_DAMAGED + 1))
    with pytest.raises(CodecError, match="checksum"):
        made._store("describe", {"collection": "c"})
    made.close()
