"""Next images that a policy predicts, decoded to pixels beside the recorded ones, and how alike they are.

The codes are predicted in one pass over the recorded sequence (teacher-forced): each is the most probable one after the
right codes before it, not after the policy's own.

Legend: N images of R x C codes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
from vlatrack.models.attention import attention_mask
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
    predicted: NDArray[np.uint8] | None  # the predicted codes, decoded; None: hidden states were not finite
    copied: NDArray[np.uint8]  # the codes of the moment before, decoded


@torch.no_grad()
def predict_frames(
    policy: VlaPolicy,
    samples: SampleSet,
    order: Sequence[Sequence[int]],
    accelerator: Accelerator,
    *,
    code_ids: Ids,
    decode: Decode,
    read_frames: ReadFrames,
) -> Iterator[PredictedFrames]:
    """The moments that world-model samples ask for, one batch in memory at a time.

    Args:
        samples: of the kind world_model alone.
        order: their numbers in batches; an empty batch is left out.
        code_ids: the ids of image codes, of which the most probable is taken.
    """
    filled = [numbers for numbers in order if numbers]
    for numbers, batch in zip(filled, load_batches(samples, filled, policy.layout), strict=True):
        with accelerator.autocast():
            rows = _most_probable_codes(policy, batch.to(accelerator.device), code_ids)
        for number, ids in zip(numbers, rows, strict=True):
            episode, step = samples.place(number)
            present, following = (samples.codes(episode, moment) for moment in (step, step + 1))
            yield PredictedFrames(
                number,
                (episode, step + 1),
                recorded=read_frames(episode, step + 1),
                ceiling=decode(following),
                predicted=None if ids is None else decode(ids.reshape(following.shape)),
                copied=decode(present),
            )


def _most_probable_codes(policy: VlaPolicy, batch: Batch, code_ids: Ids) -> list[Ids | None]:
    """For each row the ids [codes of its answer]; None where hidden states are not finite."""
    layout, ids = policy.layout, torch.from_numpy(code_ids).to(batch.input_ids.device)
    hidden = policy.backbone(batch.input_ids, attention_mask(batch.input_ids, layout)).flatten(0, 1)
    targets = batch.targets[batch.image_index]
    is_code = (targets >= layout.first_image_code) & (targets < layout.first_image_code + layout.image_codes)
    places = batch.supervised[batch.image_index[is_code]].view(batch.rows, -1)
    rows, output = list[Ids | None](), policy.backbone.output_layer[ids]
    for place in places:  # row by row: the logits of thousands of codes need memory
        logits = hidden[place] @ output.to(hidden.dtype).T
        rows.append(ids[logits.argmax(-1)].cpu().numpy() if logits.isfinite().all() else None)
    return rows


def similarity_states(frames: PredictedFrames) -> MetricStates:
    """The states of PSNR and SSIM, of each image in `FRAMES` with the recorded one; NaN for one that is not there."""
    compared = dict(zip(FRAMES, (frames.predicted, frames.ceiling, frames.copied), strict=True))
    sums = {
        f"{name}{end}": math.nan if images is None else sum(map(measure, images, frames.recorded))
        for name, measure in zip(FRAME_MEASURES, (psnr, ssim), strict=True)
        for end, images in compared.items()
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
