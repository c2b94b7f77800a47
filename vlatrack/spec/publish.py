"""What strangers may read of an experiment: not where its files lie on this machine, nor whom it reports to."""

import json
import re
from pathlib import PurePosixPath

from vlatrack.spec.experiment import ExperimentSpec

_PLACE = re.compile(r"(?:file:/+|~|/).*")
_PLACE_IN_TEXT = re.compile(r"(?<![\w.~:/@-])(?:file://)?~?(?:/[^/\s'\"]+){2,}")


def publishable(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec without its trackers, and with the last part alone of each absolute path."""
    content = spec.model_dump(mode="json", exclude={"tracking"})
    return ExperimentSpec.model_validate_json(json.dumps(_without_places(content)))


def without_places(text: str) -> str:
    """The text with the last part alone of each absolute path; addresses of other machines stay."""
    if _PLACE.fullmatch(text):
        return PurePosixPath(text).name
    return _PLACE_IN_TEXT.sub(lambda found: PurePosixPath(found[0]).name, text)


def _without_places(value: object) -> object:
    match value:
        case str():
            return without_places(value)
        case dict():
            return {key: _without_places(item) for key, item in value.items()}
        case list():
            return [_without_places(item) for item in value]
        case _:
            return value
