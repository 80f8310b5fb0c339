"""Processes that embed in turns: each in an environment of its own, asked over pipes, its memory watched."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.onnx_export import exported
from worker.weights import Weights

ROOT = Path(__file__).resolve().parent.parent
#: Environments are made here on first use and kept; git ignores it.
ENVIRONMENTS = ROOT / ".venv-peers"
#: What each peer's environment holds, to the version; torch as the fleet has it.
PINS: dict[str, tuple[str, ...]] = {
    "sentence-transformers": ("sentence-transformers==6.2.0", "transformers==5.23.0", "torch==2.13.0"),
    "fastembed": ("fastembed==0.9.1", "onnxruntime==1.32.0"),
    "infinity-emb": (
        "infinity-emb[torch]==0.0.78",
        "sentence-transformers==3.4.1",
        "transformers==4.57.6",
        "torch==2.13.0",
    ),
}
#: Memory is looked at this often while a contender works. Seconds.
LOOK_SECONDS = 0.5
#: How much of what a failed process said is shown. Characters.
SAID = 300


class Absent(Exception):
    """A contender cannot take part; its text says why."""


class Contender:
    """A process that has its encoder loaded."""

    def __init__(self, kind: str, python: Path | str, directory: Path, threads: int, scratch: Path) -> None:
        """Start it and wait until it has embedded something; raises Absent if it does not come so far."""
        self._log = scratch / f"{kind}-{id(self)}.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT) if kind == "ours" else "",
            "OMP_NUM_THREADS": str(threads),
            # No hub, and no word home.
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(python),
                    str(ROOT / "benchmarks/contender_child.py"),
                    kind,
                    str(directory),
                    str(threads),
                ],
                env=environment,
                cwd=scratch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._scratch = scratch
        try:
            self._answer()
        except Absent:
            self.close()
            raise

    def embed(self, texts: Path, batch: int) -> tuple[dict[str, float], Path]:
        """Seconds of wall and CPU, the largest memory (`pss_bytes`) meanwhile, and the vectors' file.

        Raises Absent with what it said, if it fails.
        """
        vectors = self._scratch / f"{texts.stem}-{id(self)}.npy"
        assert self._process.stdin is not None
        order = {"texts": str(texts), "batch": batch, "vectors": str(vectors)}
        with peak_pss(lambda: [self._process.pid, *_children(self._process.pid)]) as peak:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        return {**answer, "pss_bytes": peak[0]}, vectors

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries print as they like; what is meant for us is a JSON object.
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise Absent(str(answer["error"])[:SAID])
                return answer
        self._process.wait()
        said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise Absent(f"it ended with exit code {self._process.returncode}: {said[-1][-SAID:]}")


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, made now if it is not there or of other versions.

    What `PIP_ARGS` has goes to pip. Raises Absent if it cannot be made.
    """
    home = ENVIRONMENTS / peer
    stamp = home / "pins.json"
    python = home / "bin/python"
    pins = list(PINS[peer])
    if stamp.is_file() and json.loads(stamp.read_text()) == pins:
        return python
    print(f"making {home.relative_to(ROOT)}: {', '.join(pins)}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True, text=True)
        command = [str(python), *pip, *shlex.split(os.environ.get("PIP_ARGS", "")), *pins]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Absent(f"it does not install: {last[:SAID]}") from None
    stamp.write_text(json.dumps(pins))
    return python


def onnx_directory(spec: Any, weights: Weights, cache_dir: Path, home: Path) -> Path:
    """A directory with the graph that our own encoder runs and the tokenizer, cut at the model's limit: what
    fastembed reads. It is one more than fastembed would have by itself, whose graph is not fused."""
    shutil.copytree(weights.path, home, ignore=shutil.ignore_patterns("*.safetensors"))
    (home / "model.onnx").symlink_to(exported(spec, weights, cache_dir))
    config = home / "tokenizer_config.json"
    told = {**json.loads(config.read_text()), "model_max_length": spec.max_tokens}
    config.write_text(json.dumps(told))
    return home


@contextmanager
def peak_pss(pids: Callable[[], list[int]]) -> Iterator[list[int]]:
    """The largest sum of these processes' proportional set sizes, in bytes, as the one item of a list.

    0 where the system does not tell (only Linux does).
    """
    peak = [0]
    done = threading.Event()

    def look() -> None:
        while True:
            peak[0] = max(peak[0], sum(map(_pss, pids())))
            if done.wait(LOOK_SECONDS):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def _children(pid: int) -> list[int]:
    """All processes under this one."""
    try:
        mine = [
            int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()
        ]
    except OSError:
        return []
    return [*mine, *(below for child in mine for below in _children(child))]


def processes_of(data_dir: Path) -> list[int]:
    """The processes whose environment names this data directory: those of its fleet."""
    wanted = f"V5_DATA_DIR={data_dir}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of these processes and of those they have waited for."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")
