"""Real text to measure with: the functions of the interpreter's own standard library."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path


def stdlib_functions(count: int, seed: int = 7) -> list[str]:
    """`count` functions, the same for the same interpreter, in a random order.

    Raises ValueError if the library has fewer.
    """
    found = sorted(set(_functions()))
    if len(found) < count:
        raise ValueError(f"the standard library here has {len(found)} functions, fewer than {count}")
    return random.Random(seed).sample(found, count)


def _functions() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    # One level of packages is plenty, and parses in a few seconds.
    for file in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        if "site-packages" in file.parts or "test" in file.parts:
            continue
        source = file.read_text(encoding="utf-8", errors="ignore")
        try:
            with warnings.catch_warnings():
                # Old modules have odd escapes, which are theirs to mend.
                warnings.simplefilter("ignore", DeprecationWarning)
                tree = ast.parse(source)
        except SyntaxError:
            continue
        lines = source.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield "\n".join(lines[node.lineno - 1 : node.end_lineno])
