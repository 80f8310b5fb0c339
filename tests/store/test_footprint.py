"""The estimate of disk space against a shard of the real engine."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as edge

from registry.footprint import INDEXED_FROM, sparse, stored
from registry.index import VectorIndex
from store.edge_words import config
from store.layout import Layout, VectorLayout

N, ENTRIES, ROWS = 2600, 30, 6
INDEXES = {
    "int8": (1024, VectorIndex(quantization="int8")),
    "binary": (512, VectorIndex(m=48, quantization="binary", half=True)),
}
MULTI = VectorIndex(m=0, half=True, on_disk=True)


def used(folder: Path, part: str) -> int:
    """Bytes that files take on disk, in folders of that name or files whose name begins so."""
    return sum(
        path.stat().st_blocks * 512
        for path in folder.rglob("*")
        if path.is_file() and (part in path.parts or path.name.startswith(part))
    )


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard whose largest vector is just large enough to be indexed."""
    assert N * 1024 * 4 > INDEXED_FROM
    folder = tmp_path_factory.mktemp("shard")
    vectors = [VectorLayout(name, "dense", width, index) for name, (width, index) in INDEXES.items()]
    vectors += [
        VectorLayout("multi", "multi", 128, MULTI),
        VectorLayout("sparse", "sparse", 0, VectorIndex()),
    ]
    opened = edge.EdgeShard.create(str(folder), config(Layout(tuple(vectors), False, True)))
    rng = np.random.default_rng(5)
    for start in range(0, N, 200):
        points = []
        for number in range(start, min(N, start + 200)):
            held: dict[str, object] = {
                name: rng.standard_normal(width, np.float32).tolist() for name, (width, _) in INDEXES.items()
            }
            held["multi"] = rng.standard_normal((ROWS, 128), np.float32).tolist()
            terms = np.sort(rng.choice(5000, ENTRIES, replace=False)).tolist()
            held["sparse"] = edge.SparseVector(terms, rng.random(ENTRIES).tolist())
            points.append(edge.Point(str(uuid.UUID(int=number)), held, {}))
        opened.update(edge.UpdateOperation.upsert_points(points))
    opened.flush()
    opened.optimize()
    opened.flush()
    opened.close()
    return folder


@pytest.mark.parametrize("name", INDEXES)
def test_vectors_and_copies_are_as_estimated_and_links_within_a_factor_of_three(
    shard: Path, name: str
) -> None:
    width, index = INDEXES[name]
    expected = stored(N, N, width, index, indexed=True)
    folder = f"vector_storage-{name}"
    quantized = sum(path.stat().st_size for path in shard.rglob(f"{folder}/quantized.data"))
    assert quantized == pytest.approx(expected.quantized, rel=0.01)
    assert used(shard, folder) - quantized == pytest.approx(expected.raw, rel=0.05)
    links = used(shard, f"vector_index-{name}")
    assert links <= expected.links <= 3 * links


def test_multi_vectors_are_as_estimated(shard: Path) -> None:
    expected = stored(N, N * ROWS, 128, MULTI, indexed=True)
    assert used(shard, "vector_storage-multi") == pytest.approx(expected.total, rel=0.05)


def test_sparse_vectors_are_as_estimated(shard: Path) -> None:
    expected = sparse(N, N * ENTRIES, 5000)
    assert used(shard, "vector_storage-sparse") == pytest.approx(expected.raw, rel=0.2)
    assert used(shard, "vector_index-sparse") == pytest.approx(expected.links, rel=0.2)
