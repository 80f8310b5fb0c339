"""Nothing that is read may run: no pickle, no code of a checkpoint, in any file of the project's own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("registry", "ledger", "store", "worker", "producer", "v5", "benchmarks")
#: Modules whose only use is to read objects that run code, or to write them.
UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
#: Functions that unpickle unless told not to: the end of their name, the argument and its only value.
GUARDED = {"torch.load": ("weights_only", True), "from_pretrained": ("weights_only", True)}
#: Arguments that may never be given another value than False.
NEVER = ("trust_remote_code", "allow_pickle", "allow_dangerous_deserialization")
#: Calls that read an object's own code, however they are written.
FORBIDDEN = ("read_pickle", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "yaml.load")


def faults(source: str) -> Iterator[str]:
    """What in a module's source could run what it reads."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [module, *(f"{module}.{name}" for name in names)]
                if module == "torch" and any(alias.name == "load" for alias in node.names):
                    yield f"line {node.lineno}: torch.load under another name"
            for name in names:
                if name.split(".")[0] in UNPICKLERS:
                    yield f"line {node.lineno}: imports {name}"
        elif isinstance(node, ast.keyword) and node.arg in NEVER and not _is(node.value, False):
            yield f"line {node.value.lineno}: {node.arg} is given"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in NEVER and not _is(value, False):
                    yield f"line {node.lineno}: {key.value} is given"
        elif isinstance(node, ast.Call):
            yield from _of_a_call(node)


def _of_a_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if any(name == banned or name.endswith(f".{banned}") for banned in FORBIDDEN):
        yield f"line {node.lineno}: {name}"
    for guarded, (argument, value) in GUARDED.items():
        if name != guarded and not name.endswith(f".{guarded}"):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        # safetensors are no pickles, and a tokenizer or configuration is JSON.
        harmless = _is(given.get("use_safetensors"), True) or "Config" in name or "Tokenizer" in name
        if not harmless and not _is(given.get(argument), value):
            yield f"line {node.lineno}: {name} without {argument}={value}"
        if None in given:
            yield f"line {node.lineno}: {name} with arguments that cannot be seen"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_a_module_runs_nothing_that_it_reads(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy as np, joblib.memory",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.load(path, weights_only=True, **more)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, weights_only=True, trust_remote_code=True)",
        "SentenceTransformer(path, trust_remote_code=settings.trust)",
        "options = {'trust_remote_code': True}",
        "numpy.load(path, allow_pickle=True)",
        "pandas.read_pickle(path)",
        "torch.hub.load('a/b', 'c')",
    ],
)
def test_each_way_to_run_what_is_read_is_found(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, map_location='cpu', weights_only=True)",
        "Model.from_pretrained(path, weights_only=True)",
        "Model.from_pretrained(path, use_safetensors=True)",
        "AutoTokenizer.from_pretrained(path)",
        "numpy.load(path, allow_pickle=False)",
        "json.load(file)",
    ],
)
def test_what_runs_nothing_is_left_alone(source: str) -> None:
    assert list(faults(source)) == []
