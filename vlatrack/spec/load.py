"""From a YAML file and overrides to a validated ExperimentSpec or EvaluationSpec, and back to YAML."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vlatrack.errors import SpecError
from vlatrack.spec.evaluation import EvaluationSpec
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.explain import explain
from vlatrack.spec.migrate import migrate, renamed
from vlatrack.spec.overrides import apply_override
from vlatrack.spec.secrets import find_secrets
from vlatrack.spec.tracking import Backend, TrackingSpec
from vlatrack.spec.yaml_tree import Problem, Tree, parse_value, read_tree, scalar_resolvers

MAX_BYTES = 1 << 20
_Spec = TypeVar("_Spec", bound=BaseModel)


def load_spec(path: str | Path, overrides: Sequence[str] = (), *, stored: bool = False) -> ExperimentSpec:
    """Read the experiment at `path` and apply ``key=value`` overrides in order.

    Args:
        stored: the file is the spec.yaml of a run or a checkpoint, and is migrated if an earlier version wrote it.

    Raises:
        SpecError: one line for each mistake, first those of the file, then those of the overrides.
    """
    tree = read_mapping(Path(path))
    tree.root = migrate(tree.root) if stored else renamed(tree.root)
    for override in overrides:
        apply_override(tree, override)
    tree.root = renamed(tree.root)  # an override may have the old name
    return checked(tree, ExperimentSpec)


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationSpec:
    """Read the evaluation at `path` and apply ``key=value`` overrides in order.

    Raises:
        SpecError: as ``load_spec``.
    """
    tree = read_mapping(Path(path))
    for override in overrides:
        apply_override(tree, override, EvaluationSpec)
    return checked(tree, EvaluationSpec)


def is_evaluation(path: str | Path) -> bool:
    """Whether the file at `path` is meant as an evaluation and not as an experiment: it has a suite, and no backbone.

    Raises:
        SpecError: it cannot be read, or is no mapping.
    """
    root = read_mapping(Path(path)).root
    return isinstance(root, dict) and "suite" in root and "backbone" not in root


def parse_backends(text: str) -> tuple[Backend, ...]:
    """The tracker backends in `text`, written as in the YAML of `tracking.backends`: ``[{kind: mlflow}]``.

    Raises:
        SpecError: the first mistake of this value of ``--backends``, in one line.
    """
    example = 'write a list such as "[{kind: mlflow}]", or "[]" for none'
    try:
        value = parse_value(text)
    except ValueError as error:
        raise SpecError(f"--backends: {error}; {example}") from None
    if not isinstance(value, tuple):
        raise SpecError(f"--backends: not a list; {example}")
    try:
        return TrackingSpec.model_validate({"backends": value}, strict=True).backends
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SpecError(f"--backends: {place}: {first['msg']}; {example}") from None


def dump_spec(spec: ExperimentSpec | EvaluationSpec) -> str:
    """`spec` as YAML with every default written out; loading it gives an equal spec."""
    data = spec.model_dump(mode="json")
    return yaml.dump(data, Dumper=_SpecDumper, sort_keys=False, allow_unicode=True, width=120)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SpecError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so this is not an experiment")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None


def read_mapping(path: Path) -> Tree:
    """The YAML file at `path`.

    Raises:
        SpecError: it cannot be read, or is no mapping.
    """
    tree = read_tree(_read_text(path), name=str(path))
    if not isinstance(tree.root, dict):
        found = "the file is empty" if tree.root is None else "this is not one"
        problem = Problem(tree.place(()), (), f"expected a mapping of keys such as 'name: my-experiment'; {found}")
        raise spec_error(tree.problems or [problem])
    return tree


def checked(tree: Tree, model: type[_Spec]) -> _Spec:
    """The spec that a tree holds.

    Raises:
        SpecError: one line for each mistake.
    """
    tree.problems += find_secrets(tree)
    spec = _validate(tree, model)
    if spec is None or tree.problems:
        raise spec_error(tree.problems)
    return spec


def _validate(tree: Tree, model: type[_Spec]) -> _Spec | None:
    """The spec; None if mistakes were added to the tree's problems."""
    try:
        # Strict: YAML has types, so "2" for 2 or 1 for true is a mistake.
        return model.model_validate(tree.root, strict=True)
    except ValidationError as error:
        known = [problem.path for problem in tree.problems if problem.path]
        new = explain(error, tree, model)
        tree.problems += [problem for problem in new if not any(problem.path[: len(p)] == p for p in known)]
        return None


def spec_error(problems: Iterable[Problem]) -> SpecError:
    """One line for each problem, in the order of the file."""
    in_order = sorted(problems, key=lambda problem: (problem.place.line == 0, problem.place.line))
    return SpecError("\n".join(map(str, in_order)))


class _SpecDumper(yaml.SafeDumper):
    """Quotes text that the reader would parse as a number, and writes lists of scalars on one line."""

    yaml_implicit_resolvers = scalar_resolvers(yaml.SafeDumper.yaml_implicit_resolvers)


def _represent_list(dumper: yaml.SafeDumper, items: list[object]) -> yaml.Node:
    flow = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_SpecDumper.add_representer(list, _represent_list)
