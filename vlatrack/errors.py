"""The exceptions that vlatrack raises for what a user can cause.

Every message is one line that names the place and the remedy. The command line prints the
message alone and exits with code 2; a broken invariant is an ``AssertionError`` instead.
"""

import errno

USER_ERROR = 2
"""Exit code of the command line after one of them."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of an OSError for which the remedy is to free some disk space."""


class VlatrackError(Exception):
    """Base of everything a user can cause."""


class SpecError(VlatrackError):
    """The experiment YAML, or an override of it, is wrong."""


class DataError(VlatrackError):
    """A dataset is missing, damaged, or does not fit the experiment."""


class TokenError(VlatrackError):
    """A value or a text cannot be expressed in tokens."""


class ObservationError(VlatrackError):
    """An observation is not what the policy was trained on."""


class ServingError(VlatrackError):
    """A policy cannot be served, or its server cannot answer."""


class NoAnswerError(ServingError):
    """A policy's server has not answered an observation with a chunk; the next attempt may succeed."""


class ProtocolError(VlatrackError):
    """A frame is not what the protocol of its connection says."""


class SimulatorError(VlatrackError):
    """A simulator does not start."""


class CheckpointError(VlatrackError):
    """A checkpoint is missing, damaged, or of another geometry."""


class BackboneError(VlatrackError):
    """A custom backbone does not do what the protocol of backbones says."""


class LossError(VlatrackError):
    """A loss term cannot be used: its name is taken, or it does not return a loss."""


class TrainingError(VlatrackError):
    """A training cannot continue."""


class RunError(VlatrackError):
    """The files of a run cannot be written."""


class SubmitError(VlatrackError):
    """A job cannot be submitted, or cannot do what it was submitted for."""


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite; every rank raises it after the same step."""


class TrackerError(VlatrackError):
    """A tracker backend cannot be used."""


class MissingPackageError(VlatrackError):
    """An optional package is missing; the message says how to install it."""


class UndeclaredMetricWarning(VlatrackError, UserWarning):  # noqa: N818  # a warning, as its name says
    """A run logs a metric that its schema does not declare. Tests turn this warning into an error."""
