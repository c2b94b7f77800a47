"""Names at the Hugging Face hub: `organisation/name`, or `organisation/name@revision`."""

import re
from typing import NamedTuple

from vlatrack.errors import SpecError

PREFIX = "hub:"

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_NAMED = re.compile(rf"(?:{PREFIX})?(?P<repository>{_REPOSITORY})(?:@(?P<revision>[\w./-]+))?")


class HubName(NamedTuple):
    """A repository, and a branch, tag or commit of it; None: the newest commit."""

    repository: str
    revision: str | None


def is_hub_name(text: str) -> bool:
    """Whether it looks like one; it may also be a path."""
    return _NAMED.fullmatch(text) is not None


def parse_hub_name(text: str) -> HubName:
    """With `hub:` before it or not; raises SpecError for anything else."""
    found = _NAMED.fullmatch(text)
    if found is None:
        raise SpecError(f"{text}: no name of the hub; write organisation/name")
    return HubName(found["repository"], found["revision"])
