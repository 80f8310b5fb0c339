"""Bytes on the wire: exact there and back, and refused at the first doubt."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from registry.chunks import Chunk, Original, chunk_id
from registry.codecs import Dense, Multi, Part, Sparse, pack_part, unpack_part
from registry.errors import CodecError
from registry.frames import CHECKSUM, pack_chunks, pack_json, seal, unpack_chunks, unpack_json, unseal

RNG = np.random.default_rng(5)


def part() -> Part:
    return Part(
        {
            "dense": Dense(RNG.standard_normal((3, 8)).astype(np.float32)),
            "sparse": Sparse(np.array([5, 9, 2]), np.array([0.5, 1, 2], np.float16), np.array([0, 2, 2, 3])),
            "multi": Multi(RNG.standard_normal((5, 4)).astype(np.float32), np.array([0, 1, 4, 5])),
        },
        np.array([3, 400, 7]),
        np.array([3, 256, 7]),
        {1: "a reason with ünicode"},
        {"seconds": 0.5},
    )


@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), st.integers() | st.text() | st.none()))))
def test_chunks_survive_exactly(rows: list) -> None:
    chunks = [Chunk(chunk_id(str(i)), text, payload) for i, (text, payload) in enumerate(rows)]
    try:
        blob = pack_chunks(chunks)
    except UnicodeEncodeError:
        return  # a lone surrogate; readers refuse it before this
    assert unpack_chunks(blob) == chunks


def test_a_copy_names_its_original_and_what_names_none_is_as_it_always_was() -> None:
    copy = Chunk(chunk_id("b"), "text", {"n": 1}, "a.py", Original(chunk_id("a"), 7))
    plain = Chunk(chunk_id("c"), "text", {"n": 1}, "a.py")
    assert unpack_chunks(pack_chunks([copy, plain])) == [copy, plain]
    rows = [[plain.id, "text", {"n": 1}, "a.py"]]
    assert unseal("chunks", pack_chunks([plain])) == json.dumps(rows, separators=(",", ":")).encode()
    assert unpack_chunks(seal("chunks", json.dumps(rows).encode(), compress=True)) == [plain]
    for odd in ([], ["x"], ["x", "7"], ["x", 7, 8], "x", None):
        with pytest.raises(CodecError):
            unpack_chunks(seal("chunks", json.dumps([[*rows[0], odd]]).encode(), compress=False))


def test_a_part_survives_exactly() -> None:
    before = part()
    after = unpack_part(pack_part(before))
    assert after.rejected == before.rejected
    assert after.notes == before.notes
    assert after.tokens_seen.tolist() == [3, 400, 7]
    for kind, vectors in before.vectors.items():
        again = after.vectors[kind]
        assert again.values.dtype == vectors.values.dtype
        assert np.array_equal(again.values, vectors.values)
    assert after.vectors["sparse"].row(2)[0].tolist() == [2]
    assert after.vectors["multi"].row(1).shape == (3, 4)


def test_a_part_is_hardly_larger_than_its_floats() -> None:
    n = 256
    wide = Part({"dense": Dense(np.zeros((n, 1536), np.float32))}, np.zeros(n), np.zeros(n))
    assert len(pack_part(wide)) < 1.01 * n * 1536 * 4


@pytest.mark.parametrize("position", [0, 4, 6, 14, 30, -1])
def test_one_flipped_bit_anywhere_is_noticed(position: int) -> None:
    for blob, unpack in ((pack_part(part()), unpack_part), (pack_chunks([Chunk("i", "t")]), unpack_chunks)):
        damaged = bytearray(blob)
        damaged[position] ^= 4
        with pytest.raises(CodecError):
            unpack(bytes(damaged))


@pytest.mark.parametrize("length", [0, 10, 30, -1])
def test_a_cut_blob_is_noticed(length: int) -> None:
    with pytest.raises(CodecError):
        unpack_part(pack_part(part())[:length])


def test_a_frame_of_the_first_kind_is_read_and_checked() -> None:
    """Golden vectors in collections are for ever."""
    now = pack_json([1, 2])
    body = now[CHECKSUM.stop :]
    digest = hashlib.blake2b(body, digest_size=16).digest()
    first = b"V5b1" + now[4 : CHECKSUM.start] + digest + body
    assert unpack_json(first) == [1, 2]
    for spoilt in (first[:-1] + bytes([first[-1] ^ 1]), now[:4] + first[4:], first[:4] + now[4:]):
        with pytest.raises(CodecError, match="does not match its checksum"):
            unpack_json(spoilt)


def test_a_blob_of_another_kind_is_refused() -> None:
    with pytest.raises(CodecError, match="expected a vectors blob"):
        unpack_part(pack_json([1]))


def test_a_decompression_bomb_is_not_inflated() -> None:
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    honest = bytearray(seal("json", b"x", compress=True))

    digest = xxhash.xxh3_128_digest(bomb)
    lying = honest[:6] + struct.pack("<Q", 10) + digest + bomb
    with pytest.raises(CodecError, match="holds 11 bytes and claims 10"):
        unpack_json(bytes(lying))
    frank = honest[:6] + struct.pack("<Q", 64 << 20) + digest + bomb
    with pytest.raises(CodecError, match="over the limit"):
        unseal("json", bytes(frank), limit=1 << 20)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: Part({"dense": Dense(np.zeros((2, 8), np.float32))}, p.tokens_seen, p.tokens_kept),
        lambda p: Part({"dense": Dense(np.zeros((3, 8, 1), np.float32))}, p.tokens_seen, p.tokens_kept),
        lambda p: Part({"dense": Dense(np.zeros((3, 8)))}, p.tokens_seen, p.tokens_kept),
        lambda p: Part(
            {"multi": Multi(np.zeros((5, 4), np.float32), np.array([0, 1, 9, 5]))},
            p.tokens_seen,
            p.tokens_kept,
        ),
        lambda p: Part(p.vectors, p.tokens_seen, np.zeros(2)),
    ],
)
def test_arrays_that_do_not_agree_are_refused(spoil) -> None:
    with pytest.raises(CodecError):
        unpack_part(pack_part(spoil(part())))


def test_what_is_no_chunk_is_refused() -> None:
    for body in (b"{}", b"[[1,2,3]]", b"nope", json.dumps([["id", "text"]]).encode()):
        with pytest.raises(CodecError):
            unpack_chunks(seal("chunks", body, compress=True))


def test_deep_nesting_is_refused_and_not_followed() -> None:
    deep = seal("chunks", b"[" * 200_000, compress=True)
    with pytest.raises(CodecError, match="not JSON"):
        unpack_chunks(deep)


@pytest.mark.parametrize(
    "spoil",
    [
        {"about": b"[]"},
        {"about": b"[" * 200_000},
        {"about": b'{"rejected": [], "notes": {}}'},
        {"about": b'{"rejected": {"x": ""}, "notes": {}}'},
        {"about": b'{"rejected": {}, "notes": 5}'},
        {"tokens.seen": np.array(3)},
        {"sparse.indices": np.array(3)},
        {"sparse.offsets": np.array([0, np.nan, 2, 3])},
        {"sparse.offsets": np.array(0)},
        {"multi.offsets": np.array([np.nan, 1, 4, 5])},
        {"dense.values": np.zeros((3, 8), np.uint8)},
    ],
)
def test_a_part_sealed_by_somebody_else_is_refused_at_every_odd_field(spoil: dict) -> None:
    tensors = load(unseal("vectors", pack_part(part())))
    for name, value in spoil.items():
        tensors[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    with pytest.raises(CodecError):
        unpack_part(seal("vectors", save(tensors), compress=False))
