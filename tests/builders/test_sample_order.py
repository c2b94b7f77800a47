"""The order of a training's samples, as its data says."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from program import TOY
from toy_source import ToySource

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.order import build_order
from vlatrack.data.episodes import Episode
from vlatrack.data.order import EpochOrders
from vlatrack.data.samples import SampleSet
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError
from vlatrack.spec.load import load_spec
from vlatrack.tokens.layout import TokenLayout

TOY_SOURCE = "kind: custom, target: 'toy_source:ToySource'"
PUSH, PULL = "tasks: [push the square]", "tasks: [pull the square]"


def experiment_of(*sources: str, **mixture: int) -> Experiment:
    """The toy experiment with a mixture of toys as training data."""
    listed = ", ".join(f"{{{TOY_SOURCE}, {source}}}" for source in sources)
    more = "".join(f", {key}: {value}" for key, value in mixture.items())
    return Experiment.new(load_spec(TOY, [f"data.train={{kind: mixture, sources: [{listed}]{more}}}"]))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    """Those of both toys, whatever their weights."""
    experiment, folder, device = experiment_of(PUSH, PULL), tmp_path_factory.mktemp("toy"), torch.device("cpu")
    experiment = replace(experiment, store=TokenStore(folder / "data"))
    encoding = experiment.encoding(experiment.policy(device).layout, folder / "tokenizer", device)
    return experiment.samples(encoding)["train"]


def test_samples_of_a_mixture_are_shown_by_their_weights(samples: SampleSet) -> None:
    order = build_order(experiment_of(f"{PUSH}, weight: 1", f"{PULL}, weight: 3"), samples)
    assert len(order) == len(samples) == sum(order.sizes)
    assert order.sizes == (len(samples) * 10 // 12, len(samples) * 2 // 12)
    batches = list(order.of(4))
    assert len(batches) == order.steps
    pulled = sum(samples.describe(int(n))["task"] == "pull the square" for batch in batches for n in batch)
    assert pulled == pytest.approx(len(samples) * 3 / 4, abs=1)
    shorter = build_order(experiment_of(f"{PUSH}, weight: 1", f"{PULL}, weight: 3", epoch_samples=40), samples)
    assert (len(shorter), sum(map(len, shorter.of(0)))) == (40, 40)


def test_without_weights_an_epoch_has_every_sample_once(samples: SampleSet) -> None:
    experiment = experiment_of(PUSH, PULL)
    order = build_order(experiment, samples)
    assert order == EpochOrders((len(samples),), experiment.spec.train.batch_size, experiment.spec.seed)
    assert sorted(int(n) for batch in order.of(1) for n in batch) == list(range(len(samples)))


def test_a_dataset_of_a_mixture_that_has_no_sample_is_named(samples: SampleSet) -> None:
    experiment = experiment_of(f"{PUSH}, weight: 1", f"{PULL}, weight: 3")
    pushes = SampleSet(samples.episodes[:10], samples._codes, samples._encoding, ("vla",))
    with pytest.raises(DataError, match="toy: no episode is long enough for a sample; leave it out of the mixture"):
        build_order(experiment, pushes)


def test_a_codebook_is_fitted_to_images_of_different_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ToySource.frames

    def larger_for_pulls(source: ToySource, episode: Episode, camera: str) -> np.ndarray:
        small = frames(source, episode, camera)
        return np.kron(small, np.ones((1, 2, 2, 1), np.uint8)) if episode.task.startswith("pull") else small

    monkeypatch.setattr(ToySource, "frames", larger_for_pulls)
    experiment = replace(experiment_of(PUSH, PULL), store=TokenStore(tmp_path / "data"))
    encoding = experiment.encoding(TokenLayout(), tmp_path / "tokenizer", torch.device("cpu"))
    assert len(experiment.samples(encoding)["train"]) > 0


def test_variants_of_the_training_images_are_tokenised_and_shown_beside_the_originals(tmp_path: Path) -> None:
    words = ["data.augmentation={crop: 0.7, brightness: 0.4, variants: 2}"]
    words += ["tokenizer.image.encoder=squares", "tokenizer.image.codebook_size=64"]
    experiment = Experiment.new(load_spec(TOY, words), store=TokenStore(tmp_path / "data"))
    encoding = experiment.encoding(TokenLayout(), tmp_path / "tokenizer", torch.device("cpu"))
    samples = experiment.samples(encoding)
    train, count = samples["train"], len(samples["train"])
    rows = [[train[number + variant * count] for number in range(0, count, 7)] for variant in range(3)]
    original, first = rows[0][0], rows[1][0]
    is_image = (original.input_ids >= 4) & (original.input_ids < 8196)
    assert np.array_equal(original.input_ids[~is_image], first.input_ids[~is_image])
    ids = [[row.input_ids.tobytes() for row in of_variant] for of_variant in rows]
    assert all(sum(map(bytes.__ne__, one, other)) > len(one) / 4 for one, other in combinations(ids, 2))
    assert train.place(5 + 2 * count) == train.place(5)
    with pytest.raises(IndexError):
        train[3 * count]
    with pytest.raises(IndexError):
        samples["val_ind"][len(samples["val_ind"])]

    order = build_order(experiment, train)
    plain = build_order(replace(experiment, spec=load_spec(TOY, words[1:])), train)
    assert order.steps == plain.steps
    shown = order.of(1).samples.astype(int)
    assert np.array_equal(shown % count, plain.of(1).samples)
    assert set(shown // count) == {0, 1, 2}
    assert not np.array_equal(shown // count, order.of(2).samples // count)
    assert train.batch(shown[:16]).rows == 16

    again = Experiment.new(load_spec(TOY, words), store=TokenStore(tmp_path / "again"))
    repeated = again.samples(again.encoding(TokenLayout(), tmp_path / "tokenizer", torch.device("cpu")))["train"]
    assert np.array_equal(repeated[count].input_ids, first.input_ids)
