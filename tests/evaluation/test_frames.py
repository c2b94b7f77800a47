"""Predicted images are put together from the right codes, and compared with the recorded ones."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_policy import LAYOUT

from vlatrack.data.samples import EncodedEpisode, Encoding, SampleSet
from vlatrack.evaluation.frames import PredictedFrames, copied_states, predict_frames, similarity_states
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.text import ByteTokenizer

STEPS, CAMERAS = 6, ("front", "wrist")
CODES = np.arange(40, 140)


class Oracle:
    """A backbone that knows the next token of each position."""

    def __init__(self, *, broken: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        embedding = torch.randn((LAYOUT.vocabulary_size, 64), generator=generator)
        self.output_layer = embedding / embedding.norm(dim=1, keepdim=True)
        self._broken = broken

    def __call__(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.output_layer[input_ids.roll(-1, dims=1)]
        return hidden * math.nan if self._broken else hidden


@pytest.fixture
def samples() -> SampleSet:
    generator = np.random.default_rng(0)
    codes = tuple(generator.choice(CODES, (STEPS, 2, 2)) for _ in CAMERAS)
    codes[0][1] = codes[0][0]  # the front camera sees the same at first
    ids = np.full((STEPS, 1), LAYOUT.action_start + 2)
    episode = EncodedEpisode([16400], None, ids, np.zeros((STEPS, 1), np.float32), codes, "push")
    images: Any = None
    encoding = Encoding(
        layout=LAYOUT,
        bins=Bins(8),
        action_range=ValueRange((-1.0,), (1.0,)),
        state_range=None,
        text=ByteTokenizer(LAYOUT),
        images=images,
        cameras=CAMERAS,
        history=2,
        horizon=2,
        max_length=400,
    )
    return SampleSet([episode], encoding, ("world_model",))


def shown(ids: np.ndarray) -> np.ndarray:
    """Images of 16 pixels a code, in the colour of its number."""
    return np.kron(ids, np.ones((16, 16), int)).astype(np.uint8)[..., None].repeat(3, axis=-1)


def predicted(samples: SampleSet, backbone: Oracle) -> list[PredictedFrames]:
    policy: Any = SimpleNamespace(backbone=backbone, layout=LAYOUT)
    return list(
        predict_frames(
            policy,
            samples,
            [[0, 1, 2], [], [4]],
            Accelerator(cpu=True),
            code_ids=CODES,
            decode=shown,
            read_frames=lambda episode, step: shown(samples.codes(episode, step)),
        )
    )


def test_a_policy_that_knows_the_next_tokens_predicts_the_recorded_images_of_each_camera(samples: SampleSet) -> None:
    found = predicted(samples, Oracle())
    assert [(frames.number, frames.place) for frames in found] == [(n, (0, n + 1)) for n in (0, 1, 2, 4)]
    for frames in found:
        assert frames.recorded.shape == (2, 32, 32, 3)
        assert (frames.predicted == frames.recorded).all()
        assert (frames.copied == shown(samples.codes(0, frames.place[1] - 1))).all()
    states = similarity_states(found[0])
    assert (float(states["psnr_image"].mean()), float(states["psnr_image"].count)) == (100, 2)
    assert float(states["ssim_image_copied"].mean()) < 1


def test_hidden_states_that_are_not_finite_leave_no_image_and_no_number(samples: SampleSet) -> None:
    frames = predicted(samples, Oracle(broken=True))[0]
    assert frames.predicted is None
    states = similarity_states(frames)
    assert math.isnan(states["psnr_image"].mean())
    assert states["psnr_image_ceiling"].mean() == 100


def test_copying_is_right_where_an_image_does_not_change(samples: SampleSet) -> None:
    assert float(copied_states(samples, [0])["acc_image_codes_copied"].mean()) >= 0.5
    every = copied_states(samples, range(len(samples)))["acc_image_codes_copied"]
    codes = np.stack([samples.codes(0, step) for step in range(STEPS)])
    assert float(every.mean()) == pytest.approx((codes[1:] == codes[:-1]).mean())
