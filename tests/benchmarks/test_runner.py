"""All benchmarks in a row: one that fails or hangs stops none of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks.report import at_least, at_most

MODULE = """
import json, sys
from dataclasses import asdict
from benchmarks.report import at_least, save
if "fail" in sys.argv:
    sys.exit(3)
if "hang" in sys.argv:
    import signal
    signal.pause()
save(sys.argv[sys.argv.index("--json") + 1], {"seconds": 1}, [at_least("speed", 2.0, 3.0)])
"""


def test_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "benchmarks"
    package.mkdir()
    root = Path(runner.__file__).resolve().parent
    (package / "__init__.py").touch()
    (package / "report.py").write_text((root / "report.py").read_text())
    for name in ("one", "two", "three"):
        (package / f"{name}.py").write_text(MODULE)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    benchmarks = (
        runner.Benchmark("one", ("fail",), 60),
        runner.Benchmark("two", ("hang",), 1),
        runner.Benchmark("three", (), 60),
    )
    monkeypatch.setattr(runner, "BENCHMARKS", benchmarks)
    results = tmp_path / "results"
    assert runner.main(["--results", str(results)]) == 1
    said = capfd.readouterr().out
    assert "failed (exit 3)" in said
    assert "stopped after 1 s" in said
    assert "NOT MET" in said
    assert [file.name for file in results.iterdir()] == ["three.json"]
    saved = json.loads((results / "three.json").read_text())
    assert saved["machine"]["cpu"]
    assert saved["machine"]["cores"]
    assert runner.main(["--results", str(results), "--only", "three"]) == 0


def test_every_benchmark_is_a_module_of_this_package() -> None:
    for benchmark in runner.BENCHMARKS:
        assert (Path(runner.__file__).parent / f"{benchmark.name}.py").is_file()


def test_an_aim_may_be_met_exactly() -> None:
    assert at_least("speed", 1.7, 1.7).met
    assert at_most("memory", 3.0, 3.0).met
    assert not at_most("memory", 3.1, 3.0).met
