"""Validation errors in terms of the YAML: which line, what was expected, what was found."""

import re
from collections import defaultdict
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.migrate import retired_accumulate, retired_checkpointing
from vlatrack.spec.structure import blocks_at, field_at, kinds_of, known_paths
from vlatrack.spec.yaml_tree import Path, Place, Problem, Tree, Value, entries

SHAPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
}
BOUNDS = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "finite_number": "must be a finite number",
    "string_too_long": "must have at most {max_length} characters",
}
LENGTHS = {
    "too_short": "must have at least {min_length} value(s), got {actual_length}",
    "too_long": "must have at most {max_length} values, got {actual_length}",
}


def explain(error: ValidationError, tree: Tree, model: type[BaseModel] = ExperimentSpec) -> list[Problem]:
    """One problem for each mistake that pydantic found in `tree`, which was to be a `model`."""
    by_path: defaultdict[Path, list[ErrorDetails]] = defaultdict(list)
    for details in error.errors(include_url=False):
        by_path[_data_path(details, tree.root)].append(details)
    problems = []
    for path, found in by_path.items():
        exact = [details for details in found if not _is_about_shape(details)]
        deeper = any(other[: len(path)] == path != other for other in by_path)
        if exact and not (deeper and exact[0]["type"] in LENGTHS):
            problems.append(_explain_exact(exact[0], path, tree, model))
        elif not exact and not deeper:
            problems.append(Problem(tree.place(path), path, _wrong_shape(found)))
    return problems


def show(value: Value) -> str:
    """A short text for `value`, spelled as in YAML."""
    if isinstance(value, dict | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"


def _data_path(details: ErrorDetails, root: Value) -> Path:
    """The path of the error in the YAML; pydantic's own path also names the members of unions."""
    path: Path = ()
    value = root
    for position, segment in enumerate(details["loc"]):
        inside = dict(entries(value))
        if segment in inside:
            path, value = (*path, segment), inside[segment]
        elif details["type"] == "missing" and position == len(details["loc"]) - 1:
            path = (*path, segment)
    return path


def _is_about_shape(details: ErrorDetails) -> bool:
    """Whether the error is about the type of the value; for a union, every member reports one."""
    return details["type"] in SHAPES or details["type"] == "literal_error"


def _wrong_shape(found: list[ErrorDetails]) -> str:
    expected = [SHAPES.get(details["type"]) or details["ctx"]["expected"] for details in found]
    choices = [choice for text in expected for choice in _quoted(text)]
    value = found[0]["input"]
    return f"expected {_either(dict.fromkeys(expected))}, got {show(value)}{_did_you_mean(value, choices)}"


def _explain_exact(details: ErrorDetails, path: Path, tree: Tree, model: type[BaseModel]) -> Problem:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "value_error":
        text = str(context["error"])
        return Problem(_place_of_message(text, path, tree), path, text)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        path = (*path, "kind")
    match kind:
        case "extra_forbidden":
            text = _unknown_key(path, tree, model)
        case "missing" if isinstance(path[-1], int):
            text = f"this value is missing, the list has only {path[-1]}"
        case "missing":
            text = "this key is required"
        case "union_tag_not_found":
            kinds = [repr(name) for block in blocks_at(tree.root, path[:-1], model) for name in kinds_of(block)]
            text = f"this key is required: {_either(kinds)}"
        case "union_tag_invalid":
            choices = _quoted(context["expected_tags"])
            given = value["kind"]
            text = f"expected {_either(map(repr, choices))}, got {show(given)}{_did_you_mean(given, choices)}"
        case "string_pattern_mismatch":
            field = field_at(tree.root, path, model)
            meaning = field.description if field and field.description else f"the form {context['pattern']}"
            text = f"expected {meaning}, got {show(value)}"
        case _ if kind in BOUNDS:
            text = f"{BOUNDS[kind].format(**context)}, got {show(value)}"
        case _ if kind in LENGTHS:
            text = LENGTHS[kind].format(**context)
        case _:
            text = f"{details['msg']}, got {show(value)}"
    return Problem(tree.place(path), path, text)


def _unknown_key(path: Path, tree: Tree, model: type[BaseModel]) -> str:
    if path == ("train", "accumulate"):
        return retired_accumulate(tree.root)
    if path == ("train", "gradient_checkpointing"):
        return retired_checkpointing()
    key = str(path[-1])
    blocks = blocks_at(tree.root, path[:-1], model)
    if owners := [kind for block in blocks if key in block.model_fields for kind in kinds_of(block)]:
        return f"this key goes with kind: {_either(owners)}, and no kind is given"
    here = {name: None for block in blocks for name in block.model_fields}
    if ".".join(map(str, path)) in known_paths(model):
        return f"this key goes with another kind (known here: {', '.join(here)})"
    close = get_close_matches(key, here, n=1) or [other for other in known_paths(model) if other.endswith(f".{key}")]
    return f"unknown key (did you mean '{close[0]}'?)" if close else f"unknown key (known here: {', '.join(here)})"


def _place_of_message(text: str, path: Path, tree: Tree) -> Place:
    """The line of the first setting named in the message of a whole-spec check, else that of the block."""
    if not path:
        for word in re.findall(r"\w+(?:\.\w+)+", text):
            if (named := tuple(word.split("."))) in tree.places:
                return tree.places[named]
    return tree.place(path)


def _did_you_mean(value: Value, choices: list[str]) -> str:
    close = get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f" (did you mean '{close[0]}'?)" if close else ""


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _either(choices: Iterable[str]) -> str:
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
