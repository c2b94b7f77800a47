"""Predicted and generated images are put together from the right codes, and compared with the recorded ones."""

import math
from collections.abc import Set
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_policy import GEOMETRY, LAYOUT

from vlatrack.data.episodes import Episode
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.image_codes import ImageCodes
from vlatrack.evaluation.frames import PredictedFrames, copied_states, predict_frames, similarity_states
from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
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
    return samples_of(recorded_codes())


def recorded_codes() -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(0)
    codes = tuple(generator.choice(CODES, (STEPS, 2, 2)) for _ in CAMERAS)
    codes[0][1] = codes[0][0]  # the front camera sees the same at first
    return codes


def samples_of(codes: tuple[np.ndarray, ...], *, repeats_start: bool = True) -> SampleSet:
    episode = Episode(0, "push", np.zeros((STEPS, 1), np.float32), None)
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
        repeats_start=repeats_start,
    )
    return SampleSet(EpisodeList.of([episode]), [ImageCodes.of([ids]) for ids in codes], encoding, ("world_model",))


def shown(ids: np.ndarray) -> np.ndarray:
    """Images of 16 pixels a code, in the colour of its number."""
    return np.kron(ids, np.ones((16, 16), int)).astype(np.uint8)[..., None].repeat(3, axis=-1)


def predicted(samples: SampleSet, backbone: Any, *, generate: Set[int] = frozenset()) -> list[PredictedFrames]:
    policy: Any = SimpleNamespace(backbone=backbone, layout=LAYOUT)
    return list(
        predict_frames(
            policy,
            samples,
            [[0, 1, 2], [], [4]],
            Accelerator(cpu=True),
            generate=generate,
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


@pytest.fixture
def backbone() -> ChameleonBackbone:
    torch.manual_seed(0)
    backbone = ChameleonBackbone(backbone_config({**GEOMETRY, "max_position_embeddings": 400})).eval()
    with torch.no_grad():  # logits that differ
        backbone.output_layer.normal_()
    return backbone


@pytest.mark.parametrize("repeats_start", [True, False], ids=["equally long prompts", "prompts of two lengths"])
@pytest.mark.parametrize("keeps_keys", [True, False], ids=["with keys", "without keys"])
def test_a_pass_over_generated_codes_predicts_each_of_them(
    backbone: ChameleonBackbone, monkeypatch: pytest.MonkeyPatch, keeps_keys: bool, repeats_start: bool
) -> None:
    monkeypatch.setattr(ChameleonBackbone, "keeps_keys", keeps_keys)
    for frames in predicted(samples_of(recorded_codes(), repeats_start=repeats_start), backbone, generate={0, 1, 4}):
        if frames.number == 2:
            assert frames.generated is None
            continue
        assert frames.generated is not None
        assert frames.generated.images is not None
        codes = recorded_codes()
        for camera, image in zip(codes, frames.generated.images, strict=True):
            camera[frames.place[1]] = image[::16, ::16, 0]
        (again,) = (
            other
            for other in predicted(samples_of(codes, repeats_start=repeats_start), backbone)
            if other.number == frames.number
        )
        assert again.predicted is not None
        assert (again.predicted == frames.generated.images).all()
        assert (frames.predicted != frames.generated.images).any(), "after the recorded codes others are likelier"


def test_generated_images_are_compared_with_the_recorded_ones(samples: SampleSet, backbone: ChameleonBackbone) -> None:
    frames = predicted(samples, backbone, generate={1})
    assert "psnr_image_generated" not in similarity_states(frames[0])
    states = similarity_states(frames[1])
    assert frames[1].generated is not None
    assert frames[1].generated.images is not None
    same = (frames[1].generated.images == frames[1].recorded)[:, ::16, ::16, 0]
    assert float(states["acc_image_codes_generated"].mean()) == same.mean()
    assert float(states["psnr_image_generated"].mean()) < 100
    with torch.no_grad():
        backbone.output_layer.fill_(math.nan)
    states = similarity_states(predicted(samples, backbone, generate={1})[1])
    assert math.isnan(states["ssim_image_generated"].mean())
    assert math.isnan(states["acc_image_codes_generated"].mean())


def test_copying_is_right_where_an_image_does_not_change(samples: SampleSet) -> None:
    assert float(copied_states(samples, [0])["acc_image_codes_copied"].mean()) >= 0.5
    every = copied_states(samples, range(len(samples)))["acc_image_codes_copied"]
    codes = np.stack([samples.codes(0, step) for step in range(STEPS)])
    assert float(every.mean()) == pytest.approx((codes[1:] == codes[:-1]).mean())
