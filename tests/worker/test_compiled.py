"""torch.compile for layers: kept where it is right and faster, for all shapes, at no process' cost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from registry.codecs import Dense, Multi, Part, Sparse
from registry.errors import DeviceFailed, FleetError
from registry.models import OutputKind
from registry.settings import load_settings
from tests.checkpoints import bge_m3, jina_code, jina_reranker_v3, jina_v4
from tests.checkpoints.material import sentence
from worker.encoders.compile_trial import compile_if_faster
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.encoders.learned import Learned
from worker.encoders.tokens import Packed
from worker.numerics_record import fact_of
from worker.rerankers import factory as rerankers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402

from worker.encoders import torch_runtime, unpadded  # noqa: E402
from worker.encoders.layers import BEGUN, FILE, GAINED, MOST_BEGUN, Layers  # noqa: E402

#: torch's compiler imports a part of torch that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ for a CPU")

ENVIRONMENT = ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
KINDS: dict[str, tuple[OutputKind, ...]] = {
    "bge-m3": ("dense", "sparse", "multi"),
    "jina-code-embeddings-1.5b": ("dense",),
    "jina-embeddings-v4": ("dense", "multi"),
}
RECIPES: dict[str, ModuleType] = {
    "bge-m3": bge_m3,
    "jina-code-embeddings-1.5b": jina_code,
    "jina-embeddings-v4": jina_v4,
}


@pytest.fixture(autouse=True)
def decisions() -> Iterator[None]:
    """What a process decides about compiling ends with its test."""
    before = {name: os.environ.pop(name, None) for name in ENVIRONMENT}
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's kernel for texts without padding, as a graph holds it; its work done text by text."""
    op = torch.library.custom_op("v5_tests::varlen", mutates_args=())(_varlen)
    op.register_fake(lambda query, key, value, starts, longest, scale, causal: torch.empty_like(query))

    def varlen(
        query: Any, key: Any, value: Any, starts: Any, _starts: Any, longest: int, _longest: int, **more: Any
    ) -> Any:
        return op(query, key, value, starts, longest, more["scale"], more["window_size"] == (-1, 0))

    monkeypatch.setattr(unpadded, "varlen_attn", varlen)
    monkeypatch.setattr(torch_runtime, "attention_for", lambda *_: unpadded.VARLEN)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    made = []
    for begin, end in itertools.pairwise(starts.tolist()):
        assert end - begin <= longest
        q, k, v = (part[begin:end].transpose(0, 1)[None] for part in (query, key, value))
        states = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        made.append(states[0].transpose(0, 1))
    return torch.cat(made)


def load(name: str, tmp_path: Path, **settings: Any) -> Any:
    path = tmp_path / "weights"
    if not path.exists():
        RECIPES[name].build(path)
    given: dict[str, Any] = {"weights": {name: path}, "fake_weights": True, "device": "cpu"}
    given |= {"data_dir": tmp_path, "cache_dir": tmp_path / "cache", "micro_batch_tokens": 1500}
    return load_encoder(name, "", load_settings(**(given | settings)), KINDS[name])


def run(encoder: Any, texts: Sequence[str]) -> Part:
    return encode(encoder, texts, "document", KINDS[encoder.model], device_lock=threading.Lock())


def close(found: Part, wanted: Part) -> None:
    assert found.rejected == wanted.rejected == {}
    for kind, vectors in wanted.vectors.items():
        other = found.vectors[kind]
        if isinstance(vectors, Sparse) and isinstance(other, Sparse):
            np.testing.assert_array_equal(other.indices, vectors.indices)
        else:
            assert isinstance(vectors, Dense | Multi)
        np.testing.assert_allclose(other.values, vectors.values, atol=1e-5)


def compiles_for_all(encoder: Any) -> None:
    """Vectors as without, whatever the texts' lengths and numbers; and nothing is compiled on the way."""
    groups = [
        [sentence(length, length + n) for n in range(count)] for length, count in ((1, 1), (60, 1), (9, 7))
    ]
    groups += [[sentence(3 * length, length) for length in range(1, count)] for count in (3, 6, 21)]
    eager = [run(encoder, texts) for texts in groups]
    compile_if_faster(encoder, KINDS[encoder.model])
    assert encoder.numerics.compiled
    torch.compiler.set_stance("fail_on_recompile")
    for texts, wanted in zip(groups, eager, strict=True):
        close(run(encoder, texts), wanted)
    found: list[Part] = []
    thread = threading.Thread(target=lambda: found.append(run(encoder, groups[-1])))
    thread.start()
    thread.join()
    close(found[0], eager[-1])
    assert fact_of(encoder.model, found[0], "dense")["compiled"] is True
    encoder.close()


@needs_compiler
@pytest.mark.parametrize(
    "name",
    ["bge-m3", *(pytest.param(n, marks=pytest.mark.slow) for n in RECIPES if n != "bge-m3")],
)
def test_compiled_layers_give_the_same_vectors_for_every_shape(name: str, tmp_path: Path) -> None:
    encoder = load(name, tmp_path, compile="on")
    assert not encoder.numerics.compiled
    compiles_for_all(encoder)


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        "jina-code-embeddings-1.5b",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("bge-m3", "jina-embeddings-v4")),
    ],
)
@pytest.mark.usefixtures("kernel")
def test_compiled_layers_take_texts_without_padding(name: str, tmp_path: Path) -> None:
    encoder = load(name, tmp_path, compile="on")
    assert isinstance(encoder.prepare(["a"], "document").micro_batches[0].tokens, Packed)
    compiles_for_all(encoder)


@needs_compiler
@pytest.mark.slow
def test_a_reranker_scores_the_same_with_compiled_layers(tmp_path: Path) -> None:
    path = jina_reranker_v3.build(tmp_path / "weights")
    settings = load_settings(
        device="cpu",
        fake_weights=True,
        weights={"jina-reranker-v3": path},
        data_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        compile="on",
    )
    loaded = rerankers.load_reranker("jina-reranker-v3", settings)
    documents = [sentence(5 * n, n) for n in range(1, 12)]
    eager = loaded.rank("a river", documents, 4)
    rerankers.compile_if_faster(loaded)
    assert loaded.numerics.compiled
    torch.compiler.set_stance("fail_on_recompile")
    compiled = loaded.rank("a river", documents, 4)
    assert compiled.order == eager.order
    np.testing.assert_allclose(compiled.scores, eager.scores, atol=1e-5)


class Layer(GradientCheckpointingLayer):  # type: ignore[misc]
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + 1


class Rehearsal:
    """A model of two layers, by a made-up clock: `speed` times as fast compiled, and off by `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.model = torch.nn.Sequential(Layer(), Layer())
        self.learned = Learned(tmp_path / FILE)
        self.cache = tmp_path / "cache"
        self.speed, self.error = 2.0, 0.0
        self.fails: Callable[[], None] = lambda: None
        self.now, self.stance = 0.0, "default"
        #: Passes that were timed, layers that were compiled.
        self.timed = self.compiled = 0
        monkeypatch.setattr(torch, "compile", self._compile)
        monkeypatch.setattr(torch.compiler, "set_stance", self._set_stance)
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def layers(self, mode: Any = "auto", obstacle: str = "") -> Layers:
        return Layers(
            self.model, mode=mode, name="small", learned=self.learned, cache=self.cache, obstacle=obstacle
        )

    @property
    def on(self) -> bool:
        return any("forward" in vars(layer) for layer in self.model)

    @property
    def remembered(self) -> tuple[int, int]:
        return self.learned.get("small" + GAINED), self.learned.get("small" + BEGUN)

    def shapes(self) -> None:
        self.fails()
        self.answer()

    def load(self) -> None:
        self.timed += 1
        self.answer()

    def answer(self) -> float:
        return float(self.model(torch.zeros(1)))

    def problem(self, eager: object, compiled: object) -> str:
        return "" if eager == compiled else "it is wrong"

    def _compile(self, forward: Callable[[Any], Any], *, dynamic: bool) -> Callable[[Any], Any]:
        assert dynamic
        self.compiled += 1

        def compiled(value: Any) -> Any:
            eager = self.stance == "force_eager"
            self.now -= 0 if eager else 1 - 1 / self.speed
            return forward(value) + (0 if eager else self.error)

        return compiled

    def _set_stance(self, stance: str) -> Any:
        before, self.stance = self.stance, stance

        @contextmanager
        def restored() -> Iterator[None]:
            try:
                yield
            finally:
                self.stance = before

        return restored()


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rehearsal:
    made = Rehearsal(monkeypatch, tmp_path)

    def forward(self: Layer, value: torch.Tensor) -> torch.Tensor:
        made.now += 1
        return value + 1

    monkeypatch.setattr(Layer, "forward", forward)
    return made


def test_layers_that_are_faster_compiled_stay_so_and_are_timed_once(rehearsal: Rehearsal) -> None:
    assert rehearsal.layers().settle(rehearsal)
    assert (rehearsal.on, rehearsal.stance, rehearsal.remembered) == (True, "eager_on_recompile", (2000, 0))
    assert rehearsal.cache.stat().st_mode & 0o777 == 0o700
    timed = rehearsal.timed
    again = rehearsal.layers()
    assert again.settle(rehearsal)
    assert (again.gain, rehearsal.timed) == (2.0, timed)


@pytest.mark.parametrize("speed", [0.5, 1.02])
def test_layers_that_gain_nothing_stay_as_they_are(rehearsal: Rehearsal, speed: float) -> None:
    rehearsal.speed = speed
    assert not rehearsal.layers().settle(rehearsal)
    assert (rehearsal.on, rehearsal.stance) == (False, "default")
    compiled = rehearsal.compiled
    # The next start asks nothing; who insists gets them.
    assert not rehearsal.layers().settle(rehearsal)
    assert rehearsal.compiled == compiled
    assert rehearsal.layers("on").settle(rehearsal)
    assert rehearsal.on


def test_layers_that_are_wrong_compiled_stay_as_they_are(
    rehearsal: Rehearsal, caplog: pytest.LogCaptureFixture
) -> None:
    rehearsal.error = 0.1
    assert not rehearsal.layers().settle(rehearsal)
    assert (rehearsal.on, rehearsal.stance, rehearsal.remembered) == (False, "default", (0, 0))
    assert "small: torch.compile is of no use: compiled, it is wrong; layers stay as they are" in caplog.text
    with pytest.raises(FleetError, match="it is wrong; V5_COMPILE=auto or off does without"):
        rehearsal.layers("on").settle(rehearsal)
    assert not rehearsal.on


def test_layers_that_cannot_be_compiled_stay_as_they_are(
    rehearsal: Rehearsal, caplog: pytest.LogCaptureFixture
) -> None:
    rehearsal.fails = raises(RuntimeError("\nno compiler\nand much code"))
    assert not rehearsal.layers().settle(rehearsal)
    assert (rehearsal.on, rehearsal.remembered) == (False, (0, 0))
    assert "of no use: RuntimeError: no compiler; layers" in caplog.text
    with pytest.raises(FleetError, match="RuntimeError: no compiler; V5_COMPILE"):
        rehearsal.layers("on").settle(rehearsal)
    with pytest.raises(FleetError, match="one at a time"):
        rehearsal.layers("on", "attention takes its texts one at a time").settle(rehearsal)
    assert not rehearsal.layers("off", "attention takes its texts one at a time").settle(rehearsal)


def test_a_device_that_compiled_layers_take_away_is_asked_twice(
    rehearsal: Rehearsal, caplog: pytest.LogCaptureFixture
) -> None:
    rehearsal.fails = raises(DeviceFailed("CUDA error: an illegal memory access"))
    for _ in range(MOST_BEGUN):
        with pytest.raises(DeviceFailed):
            rehearsal.layers().settle(rehearsal)
    compiled = rehearsal.compiled
    assert not rehearsal.layers().settle(rehearsal)
    assert rehearsal.compiled == compiled
    assert f"2 processes ended while they compiled; delete {rehearsal.learned.path}" in caplog.text
    rehearsal.learned.path.unlink()
    rehearsal.fails = lambda: None
    assert rehearsal.layers().settle(rehearsal)


def test_who_is_stopped_while_it_compiles_tries_again(rehearsal: Rehearsal) -> None:
    rehearsal.fails = raises(KeyboardInterrupt())
    for _ in range(MOST_BEGUN + 1):
        with pytest.raises(KeyboardInterrupt):
            rehearsal.layers().settle(rehearsal)
        assert (rehearsal.on, rehearsal.remembered) == (False, (0, 0))


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from worker.encoders.layers import Layers
from worker.encoders.learned import Learned

class Trial:
    def shapes(self): os.kill(os.getpid(), signal.SIGKILL)
    def answer(self): return 0

data = Path(sys.argv[1])
layers = Layers(
    torch.nn.Sequential(GradientCheckpointingLayer()),
    mode="auto", name="small", learned=Learned(data / "compiled.json"), cache=data / "cache",
)
print(layers.settle(Trial()))
"""


def test_a_compiler_that_ends_its_process_does_so_twice(tmp_path: Path) -> None:
    def start() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert [start().returncode for _ in range(MOST_BEGUN)] == [-signal.SIGKILL] * MOST_BEGUN
    third = start()
    assert (third.returncode, third.stdout.strip()) == (0, "False")
    assert "2 processes ended while they compiled" in third.stderr
    assert json.loads((tmp_path / FILE).read_text()) == {"small" + BEGUN: MOST_BEGUN}
