"""From a spec with finished token rows to rows that fit it, or to one line that says why they do not."""

from pathlib import Path

import numpy as np
import pytest
from program import TOY
from rynnvla_data import vla_conversations, world_model_conversations, write_records, write_trajectories
from rynnvla_rows import ExpectedRows, Row, chameleon_like_tokenizer
from toy_source import ToySource

from vlatrack.builders.data import open_source
from vlatrack.builders.experiment import Experiment
from vlatrack.builders.order import build_order
from vlatrack.builders.rows import open_rows, row_fingerprints
from vlatrack.data.formats.rynnvla.records import Records
from vlatrack.data.order import EpochOrders
from vlatrack.data.row_checks import RowCounts
from vlatrack.data.row_samples import RowSamples
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError, SpecError
from vlatrack.spec.data import RynnVlaConversationsSource, RynnVlaRecordsSource
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import canonical_hash
from vlatrack.spec.load import load_spec
from vlatrack.tokens.layout import TokenLayout

RANGES = "{action_low: [-1, -1], action_high: [1, 1], state_low: [-2, -2], state_high: [2, 2]}"
ON_ROWS = (
    f"tokenizer.statistics={RANGES}",
    "tokenizer.checkpoint=chameleon",
    "tokenizer.bins=256",
    "data.history=2",
    "data.history_start=shorter",
    "backbone.max_seq_len=300",
)


def _spec(path: Path, *overrides: str) -> ExperimentSpec:
    return load_spec(TOY, [f"data.train={{kind: rynnvla_records, path: {path}}}", *ON_ROWS, *overrides])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The toy's VLA and world-model rows as the reference tokenises them, and the YAML that names them."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "exps").mkdir()
    trajectories = folder / "processed_data/toy"
    write_trajectories(trajectories, ToySource(episodes=2), {"front": "imgs_third_view"})
    rows = ExpectedRows(
        folder / "exps",
        tokenizer=chameleon_like_tokenizer(),
        codes=lambda image: 4 + image[:2, :2, 0].astype(np.int64),
        ranges={"action": ([-1, -1], [1, 1]), "state": ([-2, -2], [2, 2])},
    )
    views = ["imgs_third_view"]
    items = vla_conversations(trajectories, history=2, horizon=3, cameras=views)["all"]
    items += world_model_conversations(trajectories, cameras=views)["all"]
    expected = [rows.row(item) for item in items]
    return write_records(folder, expected), expected


def test_rows_that_fit_become_samples(written: tuple[Path, list[Row]], tmp_path: Path) -> None:
    config, expected = written
    spec, layout = _spec(config), TokenLayout()
    assert isinstance(spec.data.train, RynnVlaRecordsSource)
    rows, counts = open_rows(spec.data.train, spec, layout=layout, vocabulary=65536, folder=tmp_path)
    assert counts == RowCounts(vla=2 * 12, world_model=2 * 13)
    samples = RowSamples(rows, layout)
    assert len(samples) == 50
    assert [int(samples.lengths_of(np.array([number]))[0]) for number in range(50)] == [len(ids) for ids, _ in expected]
    assert samples.describe(3) == {"number": 3, "kind": "vla"}
    assert samples.describe(30) == {"number": 30, "kind": "world_model"}
    batch = samples.batch(np.array([30, 3]), length_multiple=8)
    assert batch.input_ids.shape == (2, -(-max(len(expected[30][0]), len(expected[3][0])) // 8) * 8)
    assert batch.action_rows.tolist() == [1]
    assert batch.input_ids[1, : len(expected[3][0])].tolist() == expected[3][0]
    assert samples.batch([]).is_idle


def test_a_ratio_is_the_share_of_a_list_in_an_epoch_and_its_rows_come_in_passes(tmp_path: Path) -> None:
    ids = [([token, token + 1], [-100, token + 1]) for token in range(10, 20)]
    files = [write_records(tmp_path, ids[:8], name="a"), write_records(tmp_path, ids[8:], name="b")]
    names = [f"{file.stem}.json" for file in files]
    paths = [f"path: ../processed_data/concate_tokens/{name}" for name in names]
    config, store = files[0], TokenStore(tmp_path / "store")

    def experiment_of(first: str, second: str) -> tuple[Experiment, RowSamples]:
        config.write_text(f"META:\n- {{{paths[0]}, {first}}}\n- {{{paths[1]}, {second}}}\n")
        spec = _spec(config)
        rows = Records(config).rows(tmp_path / "rows")
        experiment = Experiment(spec, {}, None, None, None, False, row_fingerprints(spec, store), store)  # type: ignore[arg-type]
        return experiment, RowSamples(rows, TokenLayout())

    experiment, samples = experiment_of("ratio: 0.3", "type: world")
    order = build_order(experiment, samples)
    assert len(order) == 2 + 2, "0.3 of 8, rounded down, and both of the other"
    epochs = [np.sort(order.of(epoch).samples) for epoch in range(4)]
    assert all(set(epoch[2:]) == {8, 9} for epoch in epochs), "the second list is seen whole in each"
    assert sorted(number for epoch in epochs for number in epoch[:2]) == list(range(8)), "the first one after four"
    assert np.array_equal(np.sort(build_order(experiment, samples).of(2).samples), epochs[2])
    assert samples.describe(9) == {"number": 9, "kind": "world_model", "type": "world"}
    assert "type" not in samples.describe(0)

    whole, all_rows = experiment_of("ratio: 1", "ratio: 1.0")
    assert build_order(whole, all_rows) == EpochOrders((10,), order.batch_size, whole.spec.seed)
    assert whole.hash != experiment.hash, "the share decides the result"
    with pytest.raises(DataError, match=r"a\.yaml: ratio 0.1 of a list of 8 rows is none; raise it, or"):
        build_order(*experiment_of("ratio: 0.1", "ratio: 1"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("action_head.time_horizon=4", "its answer has 3 actions, .* not 4"),
        ("data.use_state=false", "its prompt has a state, but data.use_state is false"),
        ("data.history=1", "its prompt has 2 images, which are not those of 1 cameras"),
        ("tokenizer.image.image_size=64", "it has an image that is not 64 x 64 pixels"),
        ("tokenizer.bins=100", "its state is not 2 numbers .* in 100 bins"),
        ("backbone.max_seq_len=70", "tokens, but backbone.max_seq_len is 70"),
    ],
)
def test_rows_of_another_experiment_are_refused(
    override: str, reason: str, written: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    spec = _spec(written[0], override)
    assert isinstance(spec.data.train, RynnVlaRecordsSource)
    with pytest.raises(DataError, match=rf"/tokens/rows/files/\d+\.pkl: .*{reason}"):
        open_rows(spec.data.train, spec, layout=TokenLayout(), vocabulary=65536, folder=tmp_path)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("tokenizer.statistics=minmax", "tokenizer.statistics: data.train has finished token rows"),
        (
            "tokenizer.statistics={action_low: [0, 0], action_high: [1, 1]}",
            "give action_low and action_high, state_low and state_high",
        ),
        ("tokenizer.checkpoint=null", "tokenizer.checkpoint: data.train has finished token rows"),
        ("loss.ct_target=raw", "loss.ct_target = raw, but data.train has finished token rows"),
        ("data.train.part=all", "data.train.part: this key goes with another kind"),
    ],
)
def test_what_rows_do_not_tell_has_to_be_said(override: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as error:
        _spec(Path("rows.yaml"), override)
    assert "\n" not in str(error.value)


def test_the_place_of_rows_does_not_decide_a_result() -> None:
    here, there = _spec(Path("a.yaml")), _spec(Path("b.yaml"), "data.train.root=/data")
    assert canonical_hash(here) == canonical_hash(there)


def test_conversations_are_no_finished_rows(written: tuple[Path, list[Row]]) -> None:
    lists = written[0].parents[2] / "processed_data/concate_tokens/rows.json"
    with pytest.raises(DataError, match="item 0 is a record of finished tokens"):
        open_source(RynnVlaConversationsSource(kind="rynnvla_conversations", path=str(lists)))
