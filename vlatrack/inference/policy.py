"""A trained policy that acts: from observations to action chunks, in the units of its training data."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlatrack.data.recorded import Recorded
from vlatrack.data.samples import Encoding
from vlatrack.data.statistics import NormStats
from vlatrack.inference.decoding import StaticRoom, decode_blocks, head_actions, prefill
from vlatrack.inference.observation import Interface, Observation
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.bins import decode_ids
from vlatrack.tokens.prompts import VLA_PROMPT, Ids, vla_prompt

Route = Literal["head", "tokens"]
"""The continuous ActionHead, or the action tokens of the backbone."""
Codes = Mapping[str, Ids]
"""The code ids [rows, columns] of each camera's image at one moment."""


@dataclass(frozen=True)
class ActionChunk:
    """What to do in the next steps."""

    actions: NDArray[np.float64]  # [H, A], in the units of the training data
    seconds: float  # that the forward pass took, for the whole batch that the chunk was part of


@dataclass(frozen=True)
class Moment:
    """An observation that was checked, with its images as codes."""

    observation: Observation
    codes: Codes


class ChunkPolicy(Protocol):
    """What a `Session` asks of a policy: of `ActingPolicy`, or of one behind a server."""

    @property
    def interface(self) -> Interface:
        """What it wants to see, and the shape of what it answers."""

    def see(self, observation: Observation) -> Moment:
        """Check an observation, and do what has to be done once for it. Raises ObservationError."""

    def act_on(self, rows: Sequence[Sequence[Moment]], *, route: Route = "head") -> list[ActionChunk]:
        """The chunks of several rows of moments, the oldest first and the present one last."""


class ActingPolicy:
    """A policy with everything that it needs to act."""

    def __init__(
        self,
        model: VlaPolicy,
        encoding: Encoding,
        *,
        name: str,
        sha256: str,
        recorded: Recorded | None = None,
        length_multiple: int = 1,
        static_cache: bool = False,
    ) -> None:
        """
        Args:
            name: where it comes from, for people.
            sha256: digest of the weights, tokenizers and ranges.
            recorded: how its training data were made; None: nothing is known.
            length_multiple: prompts are padded to a multiple of so many tokens, for compiled layers.
            static_cache: keep keys and values of the tokens in memory that stays in its place; then chunks may not be
                asked for by several threads at once.
        """
        self.name, self.sha256 = name, sha256
        self._model, self._encoding = model.eval(), encoding
        self._length_multiple, self._static = length_multiple, StaticRoom(model.backbone) if static_cache else None
        head = model.action_head
        self.interface = Interface(
            cameras=encoding.cameras,
            state_dim=None if encoding.state_range is None else encoding.state_range.dimensions,
            history=encoding.history,
            repeats_start=encoding.repeats_start,
            horizon=head.time_horizon,
            action_dim=head.action_dim,
            statistics=NormStats(encoding.action_range, encoding.state_range).digest(),
            recorded=recorded or Recorded(),
            deltas=encoding.deltas,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.centres.device

    def act(self, observation: Observation, *, route: Route = "head") -> ActionChunk:
        """The action chunk for one observation, as at the start of an episode; a `Session` remembers earlier moments.

        Raises:
            ObservationError: the observation is not what the policy was trained on.
        """
        return self.act_batch([observation], route=route)[0]

    def act_batch(self, observations: Sequence[Observation], *, route: Route = "head") -> list[ActionChunk]:
        """As ``act``, for several observations in one forward pass."""
        return self.act_on([[moment] for moment in self.see_batch(observations)], route=route)

    def see(self, observation: Observation) -> Moment:
        """Check an observation and encode its images.

        Raises:
            ObservationError: as ``act``.
        """
        return self.see_batch([observation])[0]

    def see_batch(self, observations: Sequence[Observation]) -> list[Moment]:
        """As ``see``, with all images of one size encoded together."""
        for observation in observations:
            self.interface.check(observation)
        cameras = self.interface.cameras
        codes = iter(self._encode([observation.images[camera] for observation in observations for camera in cameras]))
        return [Moment(observation, {camera: next(codes) for camera in cameras}) for observation in observations]

    def _encode(self, images: Sequence[NDArray[np.uint8]]) -> list[Ids]:
        codes: dict[int, Ids] = {}
        for shape in {image.shape for image in images}:
            places = [place for place, image in enumerate(images) if image.shape == shape]
            stacked = np.stack([images[place] for place in places])
            codes |= zip(places, self._encoding.images.encode(stacked), strict=True)
        return [codes[place] for place in range(len(images))]

    def act_on(self, rows: Sequence[Sequence[Moment]], *, route: Route = "head") -> list[ActionChunk]:
        """The chunks of several rows of moments, the oldest first and the present one last, in one forward pass.

        As in the training data, the first of a row stands for the moments before it, or they are left out
        (`data.history_start`).
        """
        start = time.perf_counter()
        normalised = self._normalised_actions(list(map(self._prompt, rows)), route)
        actions = self._encoding.action_range.denormalise(normalised)
        seconds = time.perf_counter() - start
        return [ActionChunk(chunk, seconds) for chunk in actions]

    def _prompt(self, moments: Sequence[Moment]) -> Ids:
        encoding, now = self._encoding, moments[-1].observation
        seen = list(moments[-encoding.history :])
        if encoding.repeats_start:
            seen = [moments[0]] * (encoding.history - len(seen)) + seen
        state = None
        if encoding.state_range is not None:
            values = encoding.state_range.normalise(np.asarray(now.state))
            state = encoding.bins.encode(values, start=encoding.layout.state_start)
        return vla_prompt(
            text=encoding.text.encode(VLA_PROMPT.format(instruction=now.instruction)),
            state=state,
            images=[moment.codes[camera] for moment in seen for camera in encoding.cameras],
            layout=encoding.layout,
        )

    @torch.inference_mode()
    def _normalised_actions(self, prompts: Sequence[Ids], route: Route) -> NDArray[Any]:
        """The chunks [B, H, A] in the range of [-1, 1]."""
        model = self._model
        multiple, static = self._length_multiple, self._static
        prompted = prefill(model, prompts, keep=route == "tokens", length_multiple=multiple, static=static)
        actions: Tensor
        if route == "head":
            actions = head_actions(model, prompted)
        else:
            actions = decode_ids(decode_blocks(model, prompted), model.centres, start=model.layout.action_start)
        return actions.double().cpu().numpy()
