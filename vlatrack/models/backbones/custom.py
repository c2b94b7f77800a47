"""Backbones of other packages, named in the YAML by ``kind: custom``."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vlatrack.errors import BackboneError, SpecError
from vlatrack.models.backbones.base import Backbone, BackboneFactory, BackboneSource, Geometry

Option = str | int | float | bool | None


def custom_factory(
    target: Callable[..., object], options: Mapping[str, Option], *, max_seq_len: int
) -> BackboneFactory:
    """A factory for a custom class derived from Backbone, or from BackboneFactory.

    Either is called with the options and ``max_seq_len`` as keyword arguments. A factory is needed for a backbone that
    comes with a text tokenizer, an image tokenizer or pretrained weights.

    Raises:
        SpecError: the target is neither, or does not accept the options.
    """
    name = getattr(target, "__qualname__", repr(target))
    arguments = {**options, "max_seq_len": max_seq_len}
    if not (isinstance(target, type) and issubclass(target, Backbone | BackboneFactory)):
        raise SpecError(
            f"backbone.target: {name} is not a class derived from Backbone (vlatrack/models/backbones/base.py)"
        )
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise SpecError(f"backbone.options: {name}: {error}") from error
    if issubclass(target, BackboneFactory):
        return target(**arguments)
    return _ClassFactory(target, arguments)


@dataclass(frozen=True)
class _ClassFactory(BackboneFactory):
    backbone: Callable[..., Backbone]
    arguments: Mapping[str, Option]

    def open(self) -> BackboneSource:
        return BackboneSource(build=self._build)

    def _build(self) -> Backbone:
        """The backbone, of which a checkpoint will be able to make another one.

        Raises:
            BackboneError: its geometry() is not JSON, or not the class's keyword arguments.
        """
        backbone = self.backbone(**self.arguments)
        name = type(backbone).__name__
        try:
            geometry = json.loads(json.dumps(dict(backbone.geometry())))
            inspect.signature(self.backbone).bind(**{**self.arguments, **geometry})
        except (TypeError, ValueError) as error:
            raise BackboneError(
                f"backbone {name}: geometry() must be JSON values that {name}(…) takes as keyword arguments ({error})"
            ) from error
        return backbone

    def from_geometry(self, geometry: Geometry) -> Backbone:
        """Geometry comes from the stored policy, everything else (such as dropout) from the experiment."""
        return self.backbone(**{**self.arguments, **geometry})
