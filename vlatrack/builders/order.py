"""From an experiment to the order of its training samples."""

from collections import Counter

from vlatrack.builders.experiment import Experiment
from vlatrack.data.mixture import MixtureSource
from vlatrack.data.order import EpochOrders
from vlatrack.data.samples import SampleSet
from vlatrack.errors import DataError
from vlatrack.metrics.schema import TRAIN
from vlatrack.spec.data import MixtureSpec


def build_order(experiment: Experiment, samples: SampleSet) -> EpochOrders:
    """In which order the training samples are shown, which of a mixture follows its weights.

    Raises:
        DataError: a dataset with a weight has no sample.
    """
    spec, split = experiment.spec, experiment.splits.get(TRAIN)
    batch_size, seed, data = spec.train.batch_size, spec.seed, spec.data.train
    source = None if split is None else split.source  # a benchmark trains without data
    if (
        split is None
        or not isinstance(source, MixtureSource)
        or not isinstance(data, MixtureSpec)
        or not source.weights
    ):
        return EpochOrders((len(samples),), batch_size, seed)
    part_of = [source.part_of(episode.index) for episode in split.episodes]
    counts = Counter(part_of[samples.place(number)[0]] for number in range(len(samples)))
    for number, part in enumerate(source.parts):
        if not counts[number]:
            raise DataError(f"{part.source.name}: no episode is long enough for a sample; leave it out of the mixture")
    sizes = tuple(counts[number] for number in range(len(source.parts)))
    return EpochOrders(sizes, batch_size, seed, source.weights, data.epoch_samples)
