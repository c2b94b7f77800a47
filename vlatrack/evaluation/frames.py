"""Next images that a policy predicts, decoded to pixels beside the recorded ones, and how alike they are.

The codes are predicted in one pass over the recorded sequence (teacher-forced): each one follows the right codes
before it, not the policy's own.

Legend: B rows, C cameras, R x C codes of an image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vlatrack.data.loading import load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.evaluation.similarity import psnr, ssim
from vlatrack.metrics.states import MetricStates
from vlatrack.metrics.world_model import CODES_COPIED, FRAME_MEASURES, FRAMES
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch
from vlatrack.tokens.prompts import Ids

Decode = Callable[[Ids], NDArray[np.uint8]]
"""Token ids [N, R, C] to RGB images [N, side, side, 3]."""
ReadFrames = Callable[[int, int], NDArray[np.uint8]]
"""The recorded images [cameras, side, side, 3] of a step: position of the episode, and step."""


@dataclass(frozen=True)
class PredictedFrames:
    """The images of one moment, one for each camera: uint8 [cameras, side, side, 3]."""

    number: int  # of the sample
    place: tuple[int, int]  # position of the episode, and step of the moment
    recorded: NDArray[np.uint8]
    ceiling: NDArray[np.uint8]  # its codes, decoded
    predicted: NDArray[np.uint8]  # the predicted codes, decoded
    copied: NDArray[np.uint8]  # the codes of the moment before, decoded


@torch.no_grad()
def predict_frames(
    policy: VlaPolicy,
    samples: SampleSet,
    order: Sequence[Sequence[int]],
    accelerator: Accelerator,
    *,
    decode: Decode,
    read_frames: ReadFrames,
) -> Iterator[PredictedFrames]:
    """The moments that world-model samples ask for, one batch in memory at a time.

    Args:
        samples: of the kind world_model alone.
        order: their numbers in batches; an empty batch is left out.
    """
    filled = [numbers for numbers in order if numbers]
    for numbers, batch in zip(filled, load_batches(samples, filled, policy.layout), strict=True):
        with accelerator.autocast():
            predicted = policy(batch.to(accelerator.device)).predicted.cpu().numpy()
        for number, ids in zip(numbers, _image_codes(predicted, batch, policy), strict=True):
            episode, step = samples.place(number)
            present, following = (samples.codes(episode, moment) for moment in (step, step + 1))
            yield PredictedFrames(
                number,
                (episode, step + 1),
                recorded=read_frames(episode, step + 1),
                ceiling=decode(following),
                predicted=decode(ids.reshape(following.shape)),
                copied=decode(present),
            )


def _image_codes(predicted: Ids, batch: Batch, policy: VlaPolicy) -> Ids:
    """The predicted ids of each row where its answer has image codes, [B, codes]."""
    index, layout = batch.image_index.numpy(), policy.layout
    targets = batch.targets.numpy()[index]
    is_code = (targets >= layout.first_image_code) & (targets < layout.first_image_code + layout.image_codes)
    return predicted[index[is_code]].reshape(batch.rows, -1)


def similarity_states(frames: PredictedFrames) -> MetricStates:
    """The states of PSNR and SSIM, of each image in `FRAMES` with the recorded one."""
    measures = dict(zip(FRAME_MEASURES, (psnr, ssim), strict=True))
    shown: Mapping[str, NDArray[np.uint8]] = dict(
        zip(FRAMES, (frames.predicted, frames.ceiling, frames.copied), strict=True)
    )
    sums = {
        f"{name}{end}": sum(measure(image, real) for image, real in zip(images, frames.recorded, strict=True))
        for name, measure in measures.items()
        for end, images in shown.items()
    }
    count = float(len(frames.recorded))
    return MetricStates.of({name: (torch.tensor(total, dtype=torch.float64), count) for name, total in sums.items()})


def copied_states(samples: SampleSet, numbers: Sequence[int]) -> MetricStates:
    """The state of `acc_image_codes_copied` over world-model samples; needs no policy."""
    hits = count = 0
    for episode, step in map(samples.place, numbers):
        same = samples.codes(episode, step) == samples.codes(episode, step + 1)
        hits, count = hits + int(same.sum()), count + same.size
    return MetricStates.of({CODES_COPIED: (torch.tensor(float(hits)), float(count))})
