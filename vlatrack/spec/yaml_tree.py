"""YAML text as plain values, with the line on which each was written.

Scalars follow YAML 1.2: ``5e-6`` is a number, ``yes`` and ``on`` are text. Duplicate keys are
errors, and nesting and alias expansion are bounded.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

TAG_PREFIX = "tag:yaml.org,2002:"
NULL, BOOL, INT, FLOAT, STR, SEQ, MAP, MERGE = (
    TAG_PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)
IMPLICIT_SCALARS = (
    (NULL, re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    (BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (INT, re.compile(r"[-+]?[0-9]{1,18}"), list("-+0123456789")),
    (FLOAT, re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), list("-+.0123456789")),
    (FLOAT, re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), list("-+.")),
    (MERGE, re.compile(r"<<"), ["<"]),
)
MAX_DEPTH = 32
MAX_VALUES = 100_000
HINTS = {
    "block end": "check the indentation",
    "mapping values are not allowed": "check the indentation, or quote a text that contains ': '",
    "'\\t'": "indent with spaces, not tabs",
    "another document": "remove the '---' between documents",
}

SCALAR_READERS: dict[str, Callable[[str], "Value"]] = {
    NULL: lambda text: None,
    BOOL: lambda text: {"true": True, "false": False}[text.lower()],
    INT: int,
    FLOAT: lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    STR: str,
}

Value: TypeAlias = bool | int | float | str | tuple["Value", ...] | dict[str, "Value"] | None
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where something was written: a file and a line, or (line 0) a command-line override."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One mistake: where it was written, which part of the spec it concerns, and what to do."""

    place: Place
    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.place}  {dotted(self.path)}: {self.text}" if self.path else f"{self.place}  {self.text}"


@dataclass
class Tree:
    """A value, and the place of each path in it. Sequences are tuples; mappings have text keys."""

    root: Value
    places: dict[Path, Place]
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """The place of `path`, or of the closest enclosing block that was written."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def walk(self) -> Iterator[tuple[Path, Value]]:
        """Yield every path and its value, breadth first."""
        pending: list[tuple[Path, Value]] = [((), self.root)]
        while pending:
            path, value = pending.pop(0)
            yield path, value
            pending += [((*path, key), entry) for key, entry in entries(value)]


def entries(value: Value) -> Iterable[tuple[str | int, Value]]:
    """The keys or indexes of a container with its values; empty for a scalar."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, tuple) else ()


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def read_tree(text: str, *, name: str) -> Tree:
    """Parse `text`; places are shown as ``name:line``, and mistakes are listed in ``Tree.problems``."""
    tree = Tree(root=None, places={(): Place(name, 1)})
    try:
        node = _BoundedLoader(text).get_single_node()
        if node is not None:
            tree.root = _TreeBuilder(tree, name).value(node, ())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        tree.problems.append(Problem(Place(name, line), (), f"not valid YAML: character {chr(error.character)!r}"))
    except yaml.MarkedYAMLError as error:
        tree.problems.append(_syntax_problem(error, name))
    return tree


def parse_value(text: str) -> Value:
    """Parse one YAML value, such as the right side of an override.

    Raises:
        ValueError: `text` is not a YAML value; the message is one line.
    """
    tree = read_tree(text, name="value")
    if tree.problems:
        raise ValueError(tree.problems[0].text)
    return tree.root


def scalar_resolvers(
    base: dict[str, list[tuple[str, re.Pattern[str]]]],
) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The resolver table `base` of a PyYAML class, with the scalars of this module added."""
    table = {first: list(rules) for first, rules in base.items()}
    for tag, pattern, firsts in IMPLICIT_SCALARS:
        whole = re.compile(rf"(?:{pattern.pattern})\Z")
        for first in firsts:
            table.setdefault(first, []).append((tag, whole))
    return table


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and bounded nesting."""

    yaml_implicit_resolvers = scalar_resolvers({})
    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if parent is not None and self.depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=parent.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _syntax_problem(error: yaml.MarkedYAMLError, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    assert mark is not None, "PyYAML marks every syntax error"
    what = (error.problem or error.context or "syntax error").removeprefix("but ")
    hint = next((f" ({remedy})" for symptom, remedy in HINTS.items() if symptom in what), "")
    return Problem(Place(name, mark.line + 1), (), f"not valid YAML: {what}{hint}")


class _TreeBuilder:
    """Builds values from PyYAML nodes and records the place of each."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.tree = tree
        self.name = name
        self.count = 0

    def value(self, node: Node, path: Path) -> Value:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            problem = f"aliases expand to more than {MAX_VALUES} values or {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, MappingNode) and node.tag == MAP:
            return self.mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == SEQ:
            return tuple(self.item(item, (*path, i)) for i, item in enumerate(node.value))
        if isinstance(node, ScalarNode) and node.tag in SCALAR_READERS:
            return self.scalar(node, path)
        self.report(node, path, f"the YAML tag '{node.tag.replace(TAG_PREFIX, '!!')}' is not supported")
        return None

    def item(self, node: Node, path: Path, key: Node | None = None) -> Value:
        """Read one entry of a container; its place is the line of its key, else its own."""
        self.tree.places[path] = self.place(key or node)
        return self.value(node, path)

    def mapping(self, node: MappingNode, path: Path) -> dict[str, Value]:
        merged: dict[str, Value] = {}
        for key, source in node.value:
            if key.tag == MERGE:
                self.merge(source, path, merged)
        own: dict[str, Value] = {}
        for key, entry in node.value:
            if key.tag == MERGE:
                continue
            if not isinstance(key, ScalarNode):
                self.report(key, path, "a key must be a plain word")
            elif key.value in own:
                self.report(key, (*path, key.value), "this key is given twice")
            else:
                own[key.value] = self.item(entry, (*path, key.value), key)
        return {**merged, **own}

    def merge(self, node: Node, path: Path, into: dict[str, Value]) -> None:
        """Add the keys of a ``<<`` entry: the first of several sources wins, as YAML defines it."""
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.value(source, path)
            if not isinstance(value, dict):
                self.report(node, path, "'<<' takes a mapping or a list of mappings")
                return
            for key, entry in value.items():
                into.setdefault(key, entry)

    def scalar(self, node: ScalarNode, path: Path) -> Value:
        try:
            return SCALAR_READERS[node.tag](node.value)
        except (ValueError, KeyError):
            self.report(node, path, f"the value does not fit its tag '{node.tag.replace(TAG_PREFIX, '!!')}'")
            return None

    def place(self, node: Node) -> Place:
        return Place(self.name, node.start_mark.line + 1)

    def report(self, node: Node, path: Path, text: str) -> None:
        self.tree.problems.append(Problem(self.place(node), path, text))
