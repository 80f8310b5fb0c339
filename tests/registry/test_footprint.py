"""What vectors take in Qdrant, by the formulas; the store's tests hold them against the engine."""

from __future__ import annotations

import pytest

from registry.footprint import Footprint, link_bytes, sparse, stored
from registry.index import VectorIndex


def test_vectors_take_their_width_as_stored():
    assert stored(1000, 1000, 384, VectorIndex(m=0), indexed=True) == Footprint(1000 * 384 * 4)
    assert stored(1000, 1000, 384, VectorIndex(m=0, half=True), indexed=True) == Footprint(1000 * 384 * 2)


def test_a_multi_vector_takes_its_rows_and_its_graph_one_node_per_point():
    index = VectorIndex(half=True)
    found = stored(1000, 200_000, 128, index, indexed=True)
    assert found.raw == 200_000 * 128 * 2
    assert found.links == link_bytes(1000, 16)


@pytest.mark.parametrize(("quantization", "bytes_each"), [("", 0), ("int8", 384 + 4), ("binary", 48)])
def test_a_quantized_copy_comes_on_top(quantization, bytes_each):
    found = stored(1000, 1000, 384, VectorIndex(quantization=quantization), indexed=True)
    assert found.quantized == 1000 * bytes_each
    assert found.total == found.raw + found.links + found.quantized


def test_before_it_is_indexed_there_is_neither_graph_nor_copy():
    found = stored(1000, 1000, 384, VectorIndex(quantization="int8"), indexed=False)
    assert (found.links, found.quantized) == (0, 0)


def test_links_are_packed_into_the_bits_that_the_number_of_points_needs():
    # 2·16 links on the ground, 16/15 above, 10 bits each, 4 bytes for where a list begins.
    assert link_bytes(1024, 16) == (1024 * 32 + 1024 * 16 // 15) * 10 // 8 + 1024 * 4
    assert link_bytes(1_000_000, 48) > 2.9 * link_bytes(1_000_000, 16) - 8_000_000
    assert link_bytes(1000, 0) == 0
    assert link_bytes(0, 16) == link_bytes(1, 16) == 0


def test_sparse_vectors_take_blocks_and_an_inverted_index():
    found = sparse(points=100, entries=100 * 40, vocabulary=250_000)
    assert found.raw == 100 * 384
    assert found.links == 4000 * 8 + 4000 * 37
    assert sparse(100, 400_000, 1000).links == 400_000 * 8 + 1000 * 37
    assert sparse(0, 0, 1000) == Footprint(0)
