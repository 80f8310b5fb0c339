"""An ONNX worker's memory does not grow with the number of micro-batches, whatever their shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

#: What the memory after many chunks may be of that after the first 1,000.
MOST = 1.2


@pytest.mark.weights
def test_memory_settles_within_the_first_thousand_chunks(minilm_snapshot: Path, tmp_path: Path) -> None:
    memory = pytest.importorskip("benchmarks.worker_memory")
    memory.cut_graph(tmp_path, 1)
    found = memory.in_child("as served", str(tmp_path), 2500)
    assert 100 < found["settled_mib"] < 400
    assert found["peak_mib"] < MOST * found["settled_mib"]
