"""From an experiment to the order of its training samples."""

import numpy as np

from vlatrack.builders.experiment import Experiment
from vlatrack.data.mixture import MixtureSource
from vlatrack.data.order import EpochOrders
from vlatrack.data.row_samples import RowSamples
from vlatrack.data.samples import Samples, SampleSet
from vlatrack.errors import DataError
from vlatrack.metrics.schema import TRAIN
from vlatrack.spec.data import MixtureSpec, RynnVlaRecordsSource, SplitSource


def build_order(experiment: Experiment, samples: Samples) -> EpochOrders:
    """In which order the training samples are shown, which of a mixture follows its weights, and of finished token rows
    the ratios of their lists.

    Raises:
        DataError: a dataset with a weight has no sample, or a ratio leaves none of a list.
    """
    spec = experiment.spec
    batch_size, seed, mixture = spec.train.batch_size, spec.seed, spec.data.train
    variants = experiment.variants
    if isinstance(samples, RowSamples):
        return _order_of_rows(samples, spec.data.train, batch_size, seed)
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


def _order_of_rows(samples: RowSamples, named: SplitSource, batch_size: int, seed: int) -> EpochOrders:
    """An epoch has the share of each list that its ratio says; the next one goes on with the list's other rows."""
    lists = [each for each in samples.lists if each.stop > each.start]
    if all(each.ratio == 1 for each in lists):
        return EpochOrders((len(samples),), batch_size, seed)
    assert isinstance(named, RynnVlaRecordsSource)
    for each in lists:
        if not each.shown:
            size = each.stop - each.start
            remedy = "raise it, or leave the list out"
            raise DataError(f"{named.path}: ratio {each.ratio:g} of a list of {size} rows is none; {remedy}")
    sizes, shown = tuple(each.stop - each.start for each in lists), [each.shown for each in lists]
    return EpochOrders(sizes, batch_size, seed, tuple(map(float, shown)), sum(shown))
