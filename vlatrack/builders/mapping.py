"""From what a source of the spec says about numbers and cameras to a dataset that has them."""

from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.mapping import MappedSource
from vlatrack.data.vectors import (
    GRIPPER_CONVENTIONS,
    Constant,
    Dimension,
    GripperConvention,
    GripperConversion,
    VectorMapping,
)
from vlatrack.spec.data import Source
from vlatrack.spec.mapping import ConstantSpec, ConventionSpec, GripperSpec, VectorSpec


def mapped_source(source: EpisodeSource, spec: Source) -> EpisodeSource:
    """The dataset of a source of the spec, with the actions, states and camera names that it asks for.

    Raises:
        DataError: the dataset has no such dimension or camera.
    """
    if spec.actions is None and spec.states is None and not spec.cameras:
        return source
    return MappedSource(
        source, actions=_vector_mapping(spec.actions), states=_vector_mapping(spec.states), cameras=spec.cameras
    )


def _vector_mapping(spec: VectorSpec | None) -> VectorMapping | None:
    if spec is None:
        return None
    kept = None if spec.dimensions is None else tuple(map(_kept, spec.dimensions))
    return VectorMapping(kept, spec.scale, None if spec.gripper is None else _gripper_conversion(spec.gripper))


def _kept(spec: int | str | ConstantSpec) -> Dimension | Constant:
    return Constant(spec.constant) if isinstance(spec, ConstantSpec) else spec


def _gripper_conversion(spec: GripperSpec) -> GripperConversion:
    return GripperConversion(spec.dimensions, _convention(spec.convention), _convention(spec.to))


def _convention(spec: str | ConventionSpec) -> GripperConvention:
    return GRIPPER_CONVENTIONS[spec] if isinstance(spec, str) else GripperConvention(spec.open, spec.closed)
