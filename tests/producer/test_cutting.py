"""Cutting: what is whole stays whole, nothing is lost, lines are right."""

from __future__ import annotations

import ast
import asyncio
import email
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.cutting import code, prose
from producer.cutting.code import code_pieces
from producer.cutting.languages import GRAMMARS
from producer.cutting.pieces import Passage, passages
from producer.cutting.prose import prose_pieces

CAPACITY = 1600
MODULES = sorted(
    path for package in (json, email, asyncio) for path in Path(package.__file__).parent.glob("*.py")
)


def cut(text: str, language: str, capacity: int = CAPACITY) -> list[Passage]:
    if language in GRAMMARS:
        return passages(text, code_pieces(text, language, capacity))
    return passages(text, prose_pieces(text, capacity, markdown=language == "markdown"))


def dense(text: str) -> str:
    """Without whatever is blank."""
    return "".join(text.split())


def check(text: str, found: list[Passage], capacity: int) -> None:
    """What holds for every cut of every text."""
    lines = text.split("\n")
    assert dense(text) == dense("".join(passage.text for passage in found))
    for passage in found:
        assert passage.text.strip()
        # Closing brackets may go past the capacity.
        assert len(passage.text) <= capacity + code._CLOSING
        assert passage.text in "\n".join(lines[passage.start_line - 1 : passage.end_line])
    places = [(passage.start_line, passage.end_line) for passage in found]
    assert all(first[1] <= second[0] for first, second in pairwise(places))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_definitions_of_real_modules_stay_whole(path):
    text = path.read_text()
    lines = text.split("\n")
    found = cut(text, "python")
    check(text, found, CAPACITY)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        body = "\n".join(lines[first - 1 : node.end_lineno])
        if len(body) <= CAPACITY:
            holders = [p for p in found if p.start_line <= first and node.end_lineno <= p.end_line]
            assert len(holders) == 1, node.name
            assert body.strip() in holders[0].text


def test_a_definition_within_the_capacity_is_a_chunk_of_its_own():
    text = "import a\n\ndef f():\n    return 1\n\n@d\n# why\ndef g():\n    return 2\n\nclass C:\n    x = 1\n"
    found = cut(text, "python")
    assert [p.symbol for p in found if p.symbol] == ["f", "g", "C"]
    assert found[-2].text == "@d\n# why\ndef g():\n    return 2"


def test_comments_directly_above_belong_to_a_definition_and_others_do_not():
    text = "x = 1  # of x\n# apart, and long enough to stand alone {}\n\n# of f\n# too\ndef f():\n    pass\n"
    text = text.format("-" * 100)
    first, second = cut(text, "python")
    assert second.text.startswith("# of f\n# too\ndef f")
    assert "# of x" in first.text


def test_a_class_over_the_capacity_is_header_and_methods():
    methods = "".join(
        f"\n    # on m{i}\n    def m{i}(self):\n        return '{'x' * 200}'\n" for i in range(9)
    )
    text = (
        f'class Big(Base):\n    """What it is, said at some length: {"y" * 100}."""\n\n    z = 1\n{methods}'
    )
    found = cut(text, "python")
    assert [p.symbol for p in found] == ["Big", *(f"Big.m{i}" for i in range(9))]
    assert all(p.text.lstrip().startswith("# on m") for p in found[1:])
    assert found[1].text.startswith("    #")


def test_a_function_over_the_capacity_keeps_what_it_defines_whole():
    inner = "    def inner():\n        return 'whole'\n"
    filler = "".join(f"    step_{i}({i})\n" for i in range(200))
    found = cut(f"def outer():\n{filler}{inner}{filler}", "python")
    assert [p.symbol for p in found if p.text == inner.rstrip()] == ["outer.inner"]
    assert {p.symbol for p in found} == {"outer", "outer.inner"}
    # Gathered, not left as the crumbs of the syntax tree.
    assert len(found) <= 2 * -(-len(filler) // CAPACITY) + 1


SAMPLES = {
    "javascript": (
        "export class A {\n  m() {\n    return 1;\n  }\n}\n\nexport const f = async () => {\n  go();\n};\n\n"
        "function g() {\n  return 2;\n}\n\nmodule.exports.h = function () {\n  return 3;\n};\n",
        ["A", "f", "g", "module.exports.h"],
    ),
    "typescript": (
        "export interface I {\n  a: number;\n}\n\nnamespace N {\n  function q() {}\n}\n\n"
        "export default abstract class B {\n  m(): void {}\n}\n",
        ["I", "N", "B"],
    ),
    "tsx": ("export function V() {\n  return <div>hi</div>;\n}\n", ["V"]),
    "go": (
        "package a\n\n// F does.\nfunc (x T) F() int {\n\treturn 1\n}\n\ntype S struct {\n\ta int\n}\n",
        ["F", "S"],
    ),
    "rust": (
        "use a::b;\n\n/// Doc.\n#[test]\nfn f() {\n    g();\n}\n\nimpl A {\n    fn g() {}\n}\n\nmod m {\n}\n",
        ["f", "A", "m"],
    ),
    "java": ("package a;\n\n/** Doc. */\n@Ann\npublic class A {\n  void f() {}\n}\n", ["A"]),
    "c": (
        "#include <a.h>\n\nstatic int *f(int a) {\n  return 0;\n}\n\nstruct S {\n  int a;\n};\nstruct S s;\n",
        ["f", "S"],
    ),
    "cpp": (
        "template <class T>\nclass A {\n  void f() {}\n};\n\nvoid A::g() {\n}\n\nnamespace n {\nint y;\n}\n",
        ["A", "A::g", "n"],
    ),
}


@pytest.mark.parametrize("language", SAMPLES)
def test_definitions_of_every_language(language):
    text, symbols = SAMPLES[language]
    found = cut(text, language)
    check(text, found, CAPACITY)
    assert [p.symbol for p in found if p.symbol] == symbols
    # A small capacity takes the way through the tree.
    check(text, cut(text, language, 30), 30)


def test_rust_attributes_and_docs_stay_with_their_function():
    found = cut(SAMPLES["rust"][0], "rust")
    assert any("/// Doc.\n#[test]\nfn f()" in p.text for p in found)


def test_brackets_are_no_chunk():
    methods = "".join(f"  m{i}() {{\n    return '{'x' * 300}';\n  }}\n" for i in range(9))
    found = cut(f"class Big {{\n{methods}}}\n", "javascript")
    assert found[-1].text.endswith("}\n}")
    assert min(len(p.text) for p in found) > 100


def test_minified_code_is_gathered():
    text = "".join(f"function f{i}(a){{return a+{i}}}" for i in range(2000))
    found = cut(text, "javascript")
    check(text, found, CAPACITY)
    assert len(found) < 2 * len(text) / CAPACITY


@pytest.mark.parametrize("text", ["1" + "+1" * 30_000, "(" * 20_000, "x = '" + "a" * 50_000 + "'"])
def test_code_as_deep_or_long_as_it_likes(text):
    check(text, cut(text, "python"), CAPACITY)


def test_a_comment_before_a_bracket_that_is_missing_is_cut_too():
    text = "void f() {\n  x();\n  /* " + "word " * 100 + "*/"
    check(text, cut(text, "c", 100), 100)


def test_brackets_of_many_scopes_do_not_pile_up():
    depth = 60
    text = "".join(f"{'':{i}}function f{i}() {{\n{'':{i}}go();\n" for i in range(depth))
    text += "".join(f"{'':{i}}}}\n" for i in reversed(range(depth)))
    check(text, cut(text, "javascript", 90), 90)


def test_code_too_long_to_parse_is_cut_as_text(monkeypatch):
    monkeypatch.setattr(code, "MAX_PARSED", 100)
    text = "def f():\n    pass\n" * 200
    found = cut(text, "python")
    check(text, found, CAPACITY)
    assert not any(p.symbol for p in found)


def test_prose_is_cut_at_paragraphs_and_sections():
    paragraphs = [f"Paragraph {i}. " + "Words of it. " * 40 for i in range(20)]
    for passage in cut("\n\n".join(paragraphs), "text"):
        assert passage.text.startswith("Paragraph")
    sections = [f"# Section {i}\n\n" + "Words of it. " * 90 for i in range(20)]
    assert all(p.text.startswith("# Section") for p in cut("\n\n".join(sections), "markdown"))


def test_prose_slabs_do_not_show(monkeypatch):
    text = "\n\n".join(f"Paragraph {i}. " + "Words of it. " * (i % 50) for i in range(200))
    whole = cut(text, "text")
    monkeypatch.setattr(prose, "_SLAB", 8000)
    assert cut(text, "text") == whole


SNIPPETS = st.sampled_from([
    "def f():\n", "class A:\n", "    pass\n", "\n", " ", "\t", "}", "{", "(", ")", ";", '"""', "'", "# c\n",
    "@d\n", "function g(){", "x = 1\n", "é", "字", "\x0c", "\r\n", "\r", "\0", "// c\n", "/* ", "*/",
    "#[a]\n", "fn h() {}\n", "\\\n", "# T\n", "- a\n", "```\n", "\x85", "\u2028", "\ufeff", "a" * 30,
    "word " * 9,
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(SNIPPETS, max_size=60).map("".join),
    language=st.sampled_from([*GRAMMARS, "text", "markdown"]),
    capacity=st.integers(1, 200),
)
def test_nothing_is_lost_whatever_the_text(text, language, capacity):
    check(text, cut(text, language, capacity), capacity)
