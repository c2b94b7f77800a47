"""Next images that a policy predicts, decoded to pixels beside the recorded ones, and how alike they are.

There are two kinds. Predicted ones come from one pass over the recorded sequence (teacher-forced): each code is the
most probable one after the right codes before it. Generated ones are put together code by code, each the most probable
one after the policy's own.

Legend: N images of R x C codes, B rows, S positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vlatrack.data.loading import load_batches
from vlatrack.data.samples import SampleSet
from vlatrack.evaluation.similarity import psnr, ssim
from vlatrack.metrics.states import MetricStates
from vlatrack.metrics.world_model import CODE_HITS, CODES_COPIED, FRAME_MEASURES, FRAMES, GENERATED
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
    generated: "GeneratedFrames | None" = None  # None: not asked for


@dataclass(frozen=True)
class GeneratedFrames:
    """The images of one moment as the policy generates them."""

    images: NDArray[np.uint8] | None  # as those of `PredictedFrames`; None: hidden states were not finite
    right: int  # codes that are the recorded ones
    codes: int  # of all images


@torch.no_grad()
def predict_frames(
    policy: VlaPolicy,
    samples: SampleSet,
    order: Sequence[Sequence[int]],
    accelerator: Accelerator,
    *,
    generate: Set[int],
    code_ids: Ids,
    decode: Decode,
    read_frames: ReadFrames,
) -> Iterator[PredictedFrames]:
    """The moments that world-model samples ask for, one batch in memory at a time.

    Args:
        samples: of the kind world_model alone.
        order: their numbers in batches; an empty batch is left out.
        generate: the numbers of those whose images are generated, too; a forward pass for each code.
        code_ids: the ids of image codes, of which the most probable is taken.
    """
    filled = [numbers for numbers in order if numbers]
    for numbers, batch in zip(filled, load_batches(samples, filled), strict=True):
        with accelerator.autocast():
            rows = _most_probable_codes(policy, batch.to(accelerator.device), code_ids)
        generated = _generated_codes(policy, samples, sorted(generate & set(numbers)), accelerator, code_ids)
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
                generated=_compared(generated[number], following, decode) if number in generated else None,
            )


def _compared(ids: Ids | None, recorded: Ids, decode: Decode) -> GeneratedFrames:
    if ids is None:
        return GeneratedFrames(None, 0, recorded.size)
    ids = ids.reshape(recorded.shape)
    return GeneratedFrames(decode(ids), int((ids == recorded).sum()), recorded.size)


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


def _generated_codes(
    policy: VlaPolicy, samples: SampleSet, numbers: Sequence[int], accelerator: Accelerator, code_ids: Ids
) -> dict[int, Ids | None]:
    """For each sample the ids [codes of its answer] that the policy itself puts together; None where hidden states are
    not finite."""
    found = dict[int, Ids | None]()
    sequences = {number: samples[number] for number in numbers}
    for length in sorted({len(sequence.input_ids) for sequence in sequences.values()}):  # one place for each code then
        alike = [number for number, sequence in sequences.items() if len(sequence.input_ids) == length]
        ids = torch.from_numpy(np.stack([sequences[number].input_ids for number in alike])).to(accelerator.device)
        places = np.flatnonzero(np.isin(sequences[alike[0]].labels, code_ids))
        with accelerator.autocast():
            is_finite = _fill_in(policy, ids, places.tolist(), torch.from_numpy(code_ids).to(accelerator.device))
        rows = ids[:, places].cpu().numpy()
        found |= {n: row if good else None for n, row, good in zip(alike, rows, is_finite.tolist(), strict=True)}
    return found


def _fill_in(policy: VlaPolicy, ids: Tensor, places: Sequence[int], code_ids: Tensor) -> Tensor:
    """Replace the codes at these places of all rows `ids` [B, S], one after another, by the most probable ones.

    What lies between them (an image's size, the ends of its rows) is given, as the bounds of an action are.

    Returns:
        bool [B]: whether all hidden states were finite.
    """
    backbone, codes = policy.backbone, policy.backbone.output_layer[code_ids]
    mask = attention_mask(ids, policy.layout)  # depends on where images and actions are, not on the codes
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    is_finite = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    done, kept = 0, None
    for place in places:
        if backbone.keeps_keys:
            seen = slice(done, place)
            hidden, kept = backbone.forward_further(ids[:, seen], mask[:, seen, :place], positions[:, seen], kept)
            done = place
        else:
            hidden = backbone(ids[:, :place], mask[:, :place, :place])
        logits = hidden[:, -1] @ codes.to(hidden.dtype).T
        is_finite &= logits.isfinite().all(-1)
        ids[:, place] = code_ids[logits.argmax(-1)]
    return is_finite


def similarity_states(frames: PredictedFrames) -> MetricStates:
    """The states of PSNR and SSIM, of each image in `FRAMES` with the recorded one; NaN for one that is not there.

    Of generated images, where they are asked for, also that of the share of right codes.
    """
    compared = dict(zip(FRAMES, (frames.predicted, frames.ceiling, frames.copied), strict=True))
    shares = {}
    if frames.generated is not None:
        compared[GENERATED] = frames.generated.images
        right = math.nan if frames.generated.images is None else frames.generated.right
        shares = {f"{CODE_HITS}{GENERATED}": (torch.tensor(right, dtype=torch.float64), float(frames.generated.codes))}
    sums = {
        f"{name}{end}": math.nan if images is None else sum(map(measure, images, frames.recorded))
        for name, measure in zip(FRAME_MEASURES, (psnr, ssim), strict=True)
        for end, images in compared.items()
    }
    count = float(len(frames.recorded))
    totals = {name: (torch.tensor(total, dtype=torch.float64), count) for name, total in sums.items()}
    return MetricStates.of(totals | shares)


def copied_states(samples: SampleSet, numbers: Sequence[int]) -> MetricStates:
    """The state of `acc_image_codes_copied` over world-model samples; needs no policy."""
    hits = count = 0
    for episode, step in map(samples.place, numbers):
        same = samples.codes(episode, step) == samples.codes(episode, step + 1)
        hits, count = hits + int(same.sum()), count + same.size
    return MetricStates.of({CODES_COPIED: (torch.tensor(float(hits)), float(count))})
