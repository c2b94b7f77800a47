"""Parameters that are not trained."""

import fnmatch
from collections.abc import Iterable
from difflib import get_close_matches

from torch import nn

from vlatrack.errors import SpecError


def freeze(policy: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude the parameters whose names match one of the patterns from training; checkpoints still hold them.

    Raises:
        SpecError: a pattern matches no parameter, or nothing is left to train.
    """
    parameters = dict(policy.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            close = get_close_matches(pattern, parameters, n=3, cutoff=0.4) or list(parameters)[:3]
            raise SpecError(f"train.freeze: {pattern!r} matches no parameter; there are {', '.join(close)} and others")
        for name in matching:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise SpecError("train.freeze: every parameter of this policy is frozen; leave something to be trained")
