"""The metrics of predicted images: of their codes, and of the frames that these decode to.

All but those of generated images are about one pass over the recorded sequence (teacher-forced): each code is
predicted after the right ones. Beside them stands what repeating the present image would get, which in slow scenes is
a lot, and for frames what the right codes would get, which no prediction in codes can exceed. The states have the
names of the metrics.
"""

import math
from collections.abc import Iterator

from vlatrack.metrics.metric import Direction, Metric, Value
from vlatrack.metrics.states import MetricStates

CODE_HITS, CODE_NLL, CODES_COPIED = "acc_image_codes", "closs_image_codes", "acc_image_codes_copied"
FRAMES = {
    "": "predicted one: the most probable code at each place, after the right ones (teacher-forced)",
    "_ceiling": "same image as codes, which no prediction can exceed on average",
    "_copied": "present image as codes",
}
"""What is compared with the recorded next image, by the end of the metric's name."""
GENERATED = "_generated"
"""The end of the name of what is measured of generated images."""
FRAME_MEASURES = {
    "psnr_image": ("peak signal-to-noise ratio", "dB"),
    "ssim_image": ("structural similarity (Wang et al. 2004)", "1"),
}


def world_model_metrics() -> Iterator[Metric]:
    """The metrics of world-model samples, named without the split."""
    higher, lower, none, group = Direction.HIGHER, Direction.LOWER, Direction.NONE, "world_model"
    hits = "share of codes of predicted images whose most probable id is right; without grid and row ends"
    yield Metric(CODE_HITS, hits, "fraction", higher, group, value=_mean(CODE_HITS))
    copied = "share of codes of the next image that are those of the present one: what repeating it would get right"
    yield Metric(CODES_COPIED, copied, "fraction", none, group, value=_mean(CODES_COPIED))
    yield Metric(CODE_NLL, "cross-entropy of codes of predicted images", "nats", lower, group, value=_mean(CODE_NLL))
    meaning = "perplexity of codes of predicted images: exp of their cross-entropy"
    yield Metric("perplexity_image_codes", meaning, "codes", lower, group, value=_perplexity)
    own = "generated one: the most probable code at each place, after the policy's own"
    hits = f"share of codes of the next image that are those of the {own}"
    yield Metric(f"{CODE_HITS}{GENERATED}", hits, "fraction", higher, group, value=_mean(f"{CODE_HITS}{GENERATED}"))
    for measure, (meaning, unit) in FRAME_MEASURES.items():
        for end, compared in (FRAMES | {GENERATED: own}).items():
            name, direction = f"{measure}{end}", higher if end in ("", GENERATED) else none
            text = f"{meaning} of the recorded next image and the {compared}, decoded"
            yield Metric(name, text, unit, direction, group, value=_mean(name))


def _mean(name: str) -> Value:
    def value(states: MetricStates) -> float | None:
        if name not in states or not states[name].count:
            return None
        return float(states[name].mean())

    return value


def _perplexity(states: MetricStates) -> float | None:
    nll = _mean(CODE_NLL)(states)
    return None if nll is None else math.exp(nll) if nll < 700 else nll * math.inf  # NaN stays NaN
