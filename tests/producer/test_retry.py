"""Which items of a corpus a job's dead letters are about."""

from __future__ import annotations

from ledger.jobs import DeadLetter
from producer.problem import Problem
from producer.retry import Retry
from registry.chunks import Chunk, chunk_id


def chunk(name: str, source: str) -> Chunk:
    return Chunk(chunk_id(name), "text", {}, source)


def test_only_what_the_letters_name_is_tried_again() -> None:
    retry = Retry(
        [
            DeadLetter(chunk_id("a"), "why", "embed"),
            DeadLetter("line", "broken", "read", "n.jsonl:3"),
            DeadLetter("folder", "cannot be listed", "read", "src/sub"),
        ]
    )
    assert retry.has(chunk("a", "x.jsonl"))
    assert not retry.has(chunk("b", "x.jsonl"))
    assert retry.has(chunk("c", "n.jsonl"))
    assert retry.has(chunk("d", "src/sub/deep/m.py"))
    assert not retry.has(chunk("e", "src/subway.py"))
    assert retry.has(Problem("n.jsonl:9", "broken, and moved"))
    assert not retry.has(Problem("other.jsonl:3", "broken"))


def test_letters_go_through_where_their_chunks_were_met_and_did_not_die_again() -> None:
    letters = [DeadLetter(chunk_id(name), "why", "store") for name in "abc"]
    retry = Retry([*letters, DeadLetter("r1", "broken", "read", "n.jsonl:3")])
    for name in "ab":
        retry.has(chunk(name, "x.jsonl"))
    assert retry.gone_through({chunk_id("b")}) == [chunk_id("a")]
    retry.has(chunk("z", "n.jsonl"))
    assert set(retry.gone_through({chunk_id("b")})) == {chunk_id("a"), "r1"}
    assert retry.gone_through({chunk_id("a"), chunk_id("b"), "r1"}) == []
