"""Command-line overrides: ``loss.z_loss_weight=1e-4`` changes one value of a tree."""

from pydantic import BaseModel

from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.secrets import may_hold_secret
from vlatrack.spec.structure import field_at
from vlatrack.spec.yaml_tree import Path, Place, Problem, Tree, Value, dotted, parse_value


def apply_override(tree: Tree, override: str, model: type[BaseModel] = ExperimentSpec) -> None:
    """Apply ``path=value`` to the tree of a `model`; a mistake in it is added to ``tree.problems``.

    The value is YAML. A number in the path is the index into a list, which may be a default that the file does not
    mention. Missing blocks are created.
    """
    left, equals, right = override.partition("=")
    place = Place(f"override '{left}=…'" if may_hold_secret(override) else f"override '{override}'")
    segments = left.strip().split(".")
    if not equals or not all(segments):
        tree.problems.append(Problem(place, (), "expected path=value, such as optim.lr=1e-5"))
        return
    try:
        tree.root, path = _replaced(tree, tree.root, segments, parse_value(right), (), model)
    except ValueError as error:
        tree.problems.append(Problem(place, (), str(error)))
        return
    for old in [old for old in tree.places if old[: len(path)] == path]:
        del tree.places[old]
    for depth in range(1, len(path) + 1):
        tree.places.setdefault(path[:depth], place)


def _replaced(
    tree: Tree, old: Value, segments: list[str], new: Value, done: Path, model: type[BaseModel]
) -> tuple[Value, Path]:
    """`old` with `new` at `segments`, and the path to it; `done` is the path to `old`."""
    if not segments:
        return new, done
    head, rest = segments[0], segments[1:]
    if isinstance(old, tuple):
        index = _index(head, len(old), done)
        item, path = _replaced(tree, old[index], rest, new, (*done, index), model)
        return (*old[:index], item, *old[index + 1 :]), path
    if isinstance(old, dict) or old is None:
        block = old or {}
        inner = block[head] if head in block else _default_list(tree, (*done, head), model)
        entry, path = _replaced(tree, inner, rest, new, (*done, head), model)
        return {**block, head: entry}, path
    raise ValueError(f"{dotted(done)} is a single value and has no '{head}'")


def _index(segment: str, length: int, path: Path) -> int:
    if not segment.isdecimal() or int(segment) >= length:
        raise ValueError(f"{dotted(path)} is a list of {length}: expected an index below {length}, got '{segment}'")
    return int(segment)


def _default_list(tree: Tree, path: Path, model: type[BaseModel]) -> Value:
    """The default of the spec at `path` if it is a list, else None."""
    info = field_at(tree.root, path, model)
    if info is None or not isinstance(info.default, tuple):
        return None
    return tuple(item.model_dump(exclude_unset=True) if isinstance(item, BaseModel) else item for item in info.default)
