"""Languages by file extension, and the grammars of those that are cut at functions and classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

#: Extension to the name that payloads carry as `language`.
LANGUAGES = {
    ".py": "python", ".pyi": "python",
    ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "tsx",
    ".go": "go", ".rs": "rust", ".java": "java",
    ".c": "c", ".h": "cpp", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".hh": "cpp", ".hpp": "cpp",
    ".hxx": "cpp", ".ipp": "cpp", ".cu": "cpp", ".cuh": "cpp",
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown",
    ".rst": "restructuredtext", ".txt": "text", ".tex": "latex", ".adoc": "asciidoc",
    ".html": "html", ".htm": "html", ".css": "css", ".scss": "scss", ".xml": "xml",
    ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ini": "ini", ".cfg": "ini",
    ".sh": "shell", ".bash": "shell", ".zsh": "shell", ".ps1": "powershell", ".lua": "lua",
    ".rb": "ruby", ".php": "php", ".swift": "swift", ".kt": "kotlin", ".kts": "kotlin", ".scala": "scala",
    ".cs": "csharp", ".fs": "fsharp", ".r": "r", ".jl": "julia", ".pl": "perl", ".hs": "haskell",
    ".ex": "elixir", ".exs": "elixir", ".erl": "erlang", ".clj": "clojure", ".dart": "dart", ".zig": "zig",
    ".sql": "sql", ".proto": "protobuf", ".graphql": "graphql", ".tf": "terraform", ".csv": "csv",
    ".tsv": "tsv",
}  # fmt: skip


@lru_cache(1024)
def language_of(path: str) -> str | None:
    """The language that a file's name suggests; None where it says nothing."""
    return LANGUAGES.get(PurePath(path).suffix.lower())


@dataclass(frozen=True)
class Grammar:
    """A tree-sitter grammar and the node types that matter to a cutter."""

    module: str
    #: Functions, classes and their like.
    definitions: frozenset[str]
    #: Nodes that are a definition if what they hold is one: decorators, exports, assignments.
    holders: frozenset[str] = frozenset()
    #: Definitions only in a holder: most arrow functions are arguments, not things with a name.
    anonymous: frozenset[str] = frozenset()
    function: str = "language"

    def defines(self, node: Node) -> bool:
        """Whether a node is a definition, by itself or as the holder of one."""
        held: Node | None = node
        named = True
        # Export, declaration, declarator, value: no holder is nested deeper.
        for _ in range(5):
            if held is None:
                return False
            if held.type in self.definitions:
                # `struct s x;` mentions a type, `struct s {…};` defines one.
                return not held.type.endswith("_specifier") or held.child_by_field_name("body") is not None
            if not named and held.type in self.anonymous:
                return True
            if held.type not in self.holders:
                return False
            held, named = _held(held), False
        return False


def _held(node: Node) -> Node | None:
    for field in ("definition", "declaration", "value", "right", "type"):
        inner = node.child_by_field_name(field)
        if inner is not None:
            return inner
    # The last: a template's parameters, a class property's modifiers stand before what they belong to.
    return node.named_children[-1] if node.named_children else None


_JAVASCRIPT = frozenset({
    "function_declaration", "generator_function_declaration", "class_declaration", "method_definition",
})  # fmt: skip
_JAVASCRIPT_HOLDERS = frozenset({
    "export_statement", "lexical_declaration", "variable_declaration", "variable_declarator",
    "expression_statement", "assignment_expression", "field_definition", "public_field_definition",
})  # fmt: skip
_JAVASCRIPT_ANONYMOUS = frozenset({"arrow_function", "function_expression", "generator_function", "class"})
_TYPESCRIPT = _JAVASCRIPT | {
    "abstract_class_declaration", "interface_declaration", "enum_declaration", "type_alias_declaration",
    "internal_module", "module",
}  # fmt: skip
_C = frozenset({"function_definition", "struct_specifier", "union_specifier", "enum_specifier"})

GRAMMARS = {
    "python": Grammar(
        "tree_sitter_python",
        frozenset({"function_definition", "class_definition", "decorated_definition"}),
    ),
    "javascript": Grammar(
        "tree_sitter_javascript", _JAVASCRIPT, _JAVASCRIPT_HOLDERS, _JAVASCRIPT_ANONYMOUS
    ),
    "typescript": Grammar(
        "tree_sitter_typescript", _TYPESCRIPT, _JAVASCRIPT_HOLDERS, _JAVASCRIPT_ANONYMOUS,
        "language_typescript",
    ),
    "tsx": Grammar(
        "tree_sitter_typescript", _TYPESCRIPT, _JAVASCRIPT_HOLDERS, _JAVASCRIPT_ANONYMOUS, "language_tsx"
    ),
    "go": Grammar(
        "tree_sitter_go", frozenset({"function_declaration", "method_declaration", "type_declaration"})
    ),
    "rust": Grammar(
        "tree_sitter_rust",
        frozenset({
            "function_item", "struct_item", "enum_item", "union_item", "trait_item", "impl_item", "mod_item",
            "macro_definition",
        }),
    ),
    "java": Grammar(
        "tree_sitter_java",
        frozenset({
            "class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
            "annotation_type_declaration", "method_declaration", "constructor_declaration",
        }),
    ),
    "c": Grammar("tree_sitter_c", _C, frozenset({"type_definition"})),
    "cpp": Grammar(
        "tree_sitter_cpp",
        _C | {"class_specifier", "namespace_definition"},
        frozenset({"type_definition", "template_declaration"}),
    ),
}  # fmt: skip


@cache
def parser_of(language: str) -> Parser:
    """The parser of a language in GRAMMARS; the grammar is imported on first use."""
    import tree_sitter

    grammar = GRAMMARS[language]
    pointer = getattr(import_module(grammar.module), grammar.function)()
    return tree_sitter.Parser(tree_sitter.Language(pointer))


#: Fields that lead from a definition to its name, in the order to try them.
_NAME_FIELDS = ("name", "definition", "declaration", "declarator", "left", "type")
#: Nodes without such fields: the name is in the child that matters.
_NAME_CHILDREN = frozenset({
    "lexical_declaration", "variable_declaration", "expression_statement", "template_declaration",
    "type_declaration", "assignment_expression",
})  # fmt: skip


def symbol_of(node: Node) -> str | None:
    """The name a definition gives: `parse`, `Reader`, `ns::Reader::read`; None where it has none."""
    at = node
    for _ in range(8):
        following = next(filter(None, map(at.child_by_field_name, _NAME_FIELDS)), None)
        if at.type == "qualified_identifier" or (following is None and at.type not in _NAME_CHILDREN):
            name = at.text.decode(errors="replace") if at.text else ""
            return name if name and len(name) <= 200 and not any(c.isspace() for c in name) else None
        if following is None:
            if not at.named_children:
                return None
            last = at.type == "template_declaration"
            following = at.named_children[-1 if last else 0]
        at = following
    return None
