"""Chunks: what names and compares them stands in every collection already filled, so it may never change."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.chunks import NAMESPACE, Chunk, chunk_id
from registry.frames import pack_chunks, unpack_chunks

ODD = {
    "z": 1,
    "a": [1.5, 1e-7, 1e16, 123456789012345680.0, 0.0001, -0.0, 1e22, True, None],
    "é": {"b": '\x00\x1f"\\/', "a": 2**63 - 1},
}


@pytest.mark.parametrize(
    ("given", "text", "payload", "source", "identity", "content", "whole"),
    [
        (
            "a", "text", {}, "",
            "34923ce5-5ab8-59e4-9a89-eb2e05bcf5c8", "d732c6be860e019351f99173fa6ae612",
            "64cf4108b9702aecadd6128437dcba24",
        ),
        (
            "b", "naïve — 字 \n\t\x01\x7f\u2028", ODD, "src/a.py",
            "e8805780-710a-55db-81f9-5cc6634adb2a", "5d999bccef1e5c524545f726d3e0570d",
            "3eb383a3af29f8439609d061a61709d7",
        ),
    ],
)  # fmt: skip
def test_ids_and_hashes_are_those_of_collections_already_filled(
    given, text, payload, source, identity, content, whole
):
    chunk = Chunk(chunk_id(given), text, payload, source)
    assert (chunk.id, chunk.content_hash, chunk.payload_hash) == (identity, content, whole)
    (sent,) = unpack_chunks(pack_chunks([chunk]))
    assert sent == chunk
    assert sent.payload_hash == whole


def test_an_id_of_path_and_ordinal_is_that_of_collections_already_filled():
    assert chunk_id(None, "a/字.py", 3) == "29bb11c5-1e47-5ee8-8d8c-5460c73e8da4"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_an_id_is_a_uuid5(name):
    assert chunk_id(name) == str(uuid.uuid5(NAMESPACE, f"id\x00{name}"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"])), JSON))
def test_a_payload_travels_as_what_is_hashed(payload):
    chunk = Chunk(chunk_id("x"), "text", payload)
    assert chunk.body == json.dumps(payload, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    (sent,) = unpack_chunks(pack_chunks([chunk]))
    assert (sent.payload, sent.payload_hash) == (payload, chunk.payload_hash)
