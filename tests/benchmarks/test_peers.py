"""The comparison with peers: processes that answer, those that do not, and what is made of their times."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.contenders import Absent, Contender, peak_pss
from registry.models import model
from registry.settings import load_settings
from worker.weights import locate

TEXTS = ["def add(a, b):\n    return a + b", "the cat sat on the mat", ""]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    return file


@pytest.mark.weights
def test_ours_answers_like_any_other(texts: Path, tmp_path: Path) -> None:
    directory = locate(model("all-miniLM-l6"), load_settings()).path
    contender = Contender("ours", sys.executable, directory, 1, tmp_path)
    try:
        took, file = contender.embed(texts, 0)
    finally:
        contender.close()
    vectors = np.load(file)
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert took["seconds"] > 0
    # The graph alone is 90 MB.
    assert took["pss_bytes"] > 90 * peers.MIB


def test_a_peer_that_is_not_installed_says_why(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="No module named 'fastembed'"):
        Contender("fastembed", sys.executable, tmp_path, 1, tmp_path)


def test_memory_is_that_of_all_processes() -> None:
    with peak_pss(lambda: [os.getpid()]) as once:
        pass
    with peak_pss(lambda: [os.getpid()] * 2) as twice:
        pass
    assert once[0] > 0
    assert twice[0] == pytest.approx(2 * once[0], rel=0.2)


def test_ratios_are_of_the_same_slice_and_a_wrong_vector_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def took(*seconds: float, cosine: float = 1.0) -> list[dict[str, float]]:
        return [{"seconds": s, "cpu_seconds": s, "pss_bytes": 1.0, "cosine": cosine} for s in seconds]

    results = {
        "sentence-transformers (default)": took(20, 40),
        "sentence-transformers, batch 4 (best)": took(13, 26),
        "fastembed (default)": took(30, 60, cosine=0.99),
        peers.ENCODER: took(10, 20),
        peers.FLEET: took(11, 22),
    }
    file = tmp_path / "peers.json"
    options = argparse.Namespace(chunks=1000, repeats=1, threads=2, json=str(file))
    absent = {"infinity-emb": "it does not install: no network"}
    assert peers._report(options, results, {"sentence-transformers": 4}, absent) == 1
    aims = {aim["aim"]: (aim["value"], aim["met"]) for aim in json.loads(file.read_text())["aims"]}
    assert aims == {1.7: (2.0, True), 1.15: (1.3, True), 0.9999: (0.99, False)}
    assert "infinity-emb took no part: it does not install: no network" in capsys.readouterr().out
