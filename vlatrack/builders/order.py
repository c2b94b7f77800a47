"""From an experiment to the order of its training samples."""

import numpy as np

from vlatrack.builders.experiment import Experiment
from vlatrack.data.mixture import MixtureSource
from vlatrack.data.order import EpochOrders
from vlatrack.data.samples import Samples, SampleSet
from vlatrack.errors import DataError
from vlatrack.metrics.schema import TRAIN
from vlatrack.spec.data import MixtureSpec


def build_order(experiment: Experiment, samples: Samples) -> EpochOrders:
    """In which order the training samples are shown, which of a mixture follows its weights.

    Raises:
        DataError: a dataset with a weight has no sample.
    """
    spec = experiment.spec
    batch_size, seed, mixture = spec.train.batch_size, spec.seed, spec.data.train
    variants = experiment.variants
    if not (isinstance(samples, SampleSet) and isinstance(mixture, MixtureSpec) and mixture.sources[0].weight):
        return EpochOrders((len(samples),), batch_size, seed, variants=variants)
    source = experiment.splits[TRAIN].source
    assert isinstance(source, MixtureSource)
    part_of = np.array([source.part_of(index) for index in samples.episodes.indices.tolist()])
    counts = np.bincount(part_of, weights=samples.samples_per_episode, minlength=len(source.parts)).astype(int)
    for part, count in zip(source.parts, counts, strict=True):
        if not count:
            raise DataError(f"{part.source.name}: no episode is long enough for a sample; leave it out of the mixture")
    return EpochOrders(tuple(counts.tolist()), batch_size, seed, source.weights, mixture.epoch_samples, variants)
