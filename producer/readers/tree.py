"""Walking a folder: its files in a fixed order, and what is left out and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from producer.problem import Problem
from producer.readers.file import CorpusFile, format_of, unfit, why

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

#: Folders that never hold what somebody wrote.
_GENERATED = frozenset({"node_modules", "bower_components", "__pycache__"})
#: Folders that build tools write, if one of their files stands beside.
_BUILD_OUTPUT = frozenset({"build", "dist", "target"})
_BUILD_FILES = frozenset({
    "setup.py", "setup.cfg", "pyproject.toml", "package.json", "Cargo.toml", "pom.xml", "build.gradle",
    "build.gradle.kts", "CMakeLists.txt",
})  # fmt: skip
#: Files with which a folder says that it is a cache, or a virtual environment.
_TAGS = ("CACHEDIR.TAG", "pyvenv.cfg")
_GENERATED_SUFFIXES = (".min.js", ".min.css", ".lock", "-lock.yaml")
_GITIGNORE = ".gitignore"


@dataclass(frozen=True)
class Tree:
    """A submitted folder."""

    path: Path
    #: The folder's own name in labels; empty where labels are relative to it.
    label: str
    #: gitignore-style patterns over paths within the folder; with `include`, only what it matches is read.
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    #: Submitted themselves: not to be read twice.
    apart: frozenset[str] = field(default_factory=frozenset)

    def files(self) -> Iterator[CorpusFile | Problem]:
        """Files to read and things left out, ordered by name within each folder; links are not followed."""
        walk = _Walk(self)
        # By hand, for folders may be nested deeper than Python's stack.
        stack = [walk.folder(_Folder(self.path, self.label, _enclosing_rules(self.path)))]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, _Folder):
                stack.append(walk.folder(found))
            else:
                yield found


@dataclass(frozen=True)
class _Rules:
    """The rules of one .gitignore, for paths relative to its folder; a deeper file's rules win."""

    base: str
    spec: GitIgnoreSpec


@dataclass(frozen=True)
class _Folder:
    path: Path
    label: str
    rules: tuple[_Rules, ...]


class _Walk:
    def __init__(self, tree: Tree) -> None:
        from pathspec import GitIgnoreSpec

        self.tree = tree
        self.include = GitIgnoreSpec.from_lines(tree.include) if tree.include else None
        self.exclude = GitIgnoreSpec.from_lines(tree.exclude)

    def folder(self, folder: _Folder) -> Iterator[CorpusFile | Problem | _Folder]:
        path, label, rules = folder.path, folder.label, folder.rules
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield Problem(printable(label or "."), f"cannot be listed: {why(error)}")
            return
        names = {entry.name for entry in entries}
        if path != self.tree.path and not names.isdisjoint(_TAGS):
            yield Problem(label, "cache or virtual environment", "skipped")
            return
        if _GITIGNORE in names and (own := _rules_of(path)):
            rules = (*rules, own)
        for entry in entries:
            name = f"{label}/{entry.name}" if label else entry.name
            if entry.path in self.tree.apart:
                continue
            try:
                yield self._entry(entry, name, rules, names)
            except OSError as error:
                yield Problem(printable(name), why(error))

    def _entry(
        self, entry: os.DirEntry[str], label: str, rules: tuple[_Rules, ...], beside: set[str]
    ) -> CorpusFile | Problem | _Folder:
        if not _is_unicode(label):
            return Problem(printable(label), "the name is not valid UTF-8; rename it")
        if entry.is_symlink():
            return Problem(label, "symbolic link", "skipped")
        folder = entry.is_dir(follow_symlinks=False)
        reason = self._left_out(entry, folder, rules, beside)
        if reason:
            return Problem(label, reason, "skipped")
        if folder:
            return _Folder(Path(entry.path), label, rules)
        status = entry.stat(follow_symlinks=False)
        reason = unfit(entry.name, status.st_size) if stat.S_ISREG(status.st_mode) else "not a regular file"
        kind = format_of(entry.name)
        if reason or kind is None:
            return Problem(label, reason or "", "skipped")
        return CorpusFile(Path(entry.path), label, kind, status.st_size)

    def _left_out(
        self, entry: os.DirEntry[str], folder: bool, rules: tuple[_Rules, ...], beside: set[str]
    ) -> str | None:
        name = entry.name
        if name.startswith("."):
            return "hidden"
        if folder:
            if name in _GENERATED or name.endswith(".egg-info"):
                return "generated"
            if name in _BUILD_OUTPUT and not beside.isdisjoint(_BUILD_FILES):
                return "build output"
        elif name.endswith(_GENERATED_SUFFIXES):
            return "generated"
        if _ignored(rules, entry.path, folder):
            return "ignored by .gitignore"
        within = os.path.relpath(entry.path, self.tree.path) + ("/" if folder else "")
        if self.exclude.match_file(within):
            return "excluded"
        if self.include and not folder and not self.include.match_file(within):
            return "not included"
        return None


def _ignored(rules: tuple[_Rules, ...], path: str, folder: bool) -> bool:
    for rule in reversed(rules):
        within = path[len(rule.base) :].lstrip(os.sep) + ("/" if folder else "")
        verdict = rule.spec.check_file(within).include
        if verdict is not None:
            return verdict
    return False


def _rules_of(folder: Path) -> _Rules | None:
    """What a folder's .gitignore says; an unreadable one says nothing."""
    from pathspec import GitIgnoreSpec

    try:
        lines = (folder / _GITIGNORE).read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return _Rules(str(folder), GitIgnoreSpec.from_lines(lines))


def _enclosing_rules(path: Path) -> tuple[_Rules, ...]:
    """The rules above a submitted folder, up to its repository's root.

    None outside a repository, and none if they ignore the folder itself: it was asked for by name.
    """
    if (path / ".git").exists():
        return ()
    above: list[Path] = []
    for parent in path.parents:
        above.insert(0, parent)
        if (parent / ".git").exists():
            break
    else:
        return ()
    rules = tuple(rule for folder in above if (rule := _rules_of(folder)))
    return () if _ignored(rules, str(path), True) else rules


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file name that may hold bytes that are no UTF-8, for messages."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
