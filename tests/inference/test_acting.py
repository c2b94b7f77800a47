"""A loaded policy acts as it was trained and evaluated, and says what an observation lacks."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from program import TOY
from toy_source import ToySource

import vlatrack
from vlatrack import Execution, Observation, Policy, Session
from vlatrack.errors import ObservationError, SpecError, VlatrackError
from vlatrack.inference.policy import ActingPolicy
from vlatrack.runner import acting
from vlatrack.runner.directory import RunDirectory
from vlatrack.tokens.batch import collate
from vlatrack.training.compilation import compile_blocks

SHORT = ("train.max_steps=2", "data.history=2", "evaluate.open_loop=null", "tracking.system_every_s=null")
EPISODE = ToySource().episodes()[0]
FRAMES = ToySource().frames(EPISODE, "front")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=tmp_path_factory.mktemp("acting"))


@pytest.fixture(scope="module")
def policy(run: RunDirectory) -> Policy:
    return Policy.load(run.path, device="cpu")


@pytest.fixture(scope="module")
def shorter(policy: Policy) -> ActingPolicy:
    """The same weights, with a history that is shorter at the start."""
    encoding = replace(policy._encoding, repeats_start=False)
    return ActingPolicy(policy._model, encoding, name="shorter", sha256=policy.sha256)


def observed(step: int) -> Observation:
    return Observation({"front": FRAMES[step]}, EPISODE.task, EPISODE.states[step])


@pytest.mark.parametrize("acting", ["policy", "shorter"])
@torch.no_grad()
def test_its_actions_are_those_of_the_forward_pass_that_training_and_evaluation_use(
    acting: str, run: RunDirectory, request: pytest.FixtureRequest
) -> None:
    policy, spec = request.getfixturevalue(acting), run.spec()
    experiment = vlatrack.Experiment.new(spec, store=run.store)
    encoding = policy._encoding
    samples = experiment.samples(encoding)["train"]
    session = Session(policy, execution=Execution(replan_every=1))
    for step in range(4):  # the first samples are those of the first episode, step by step
        output = policy._model(collate([samples[step]], encoding.layout))
        assert output.actions is not None
        expected = encoding.action_range.denormalise(output.actions[0].double().numpy())
        assert session.act(observed(step)) == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("history_start", ["repeat", "shorter"])
@torch.no_grad()
def test_a_policy_that_counts_seconds_acts_on_the_frames_of_its_training_data(
    history_start: str, policy: Policy, run: RunDirectory
) -> None:
    moments = ("data.history=1", "data.history_deltas=[-0.2, 0]", f"data.history_start={history_start}")
    experiment = vlatrack.Experiment.new(vlatrack.load_spec(TOY, [*SHORT, *moments]), store=run.store)
    deltas = experiment.splits["train"].deltas
    assert deltas is not None
    encoding = replace(policy._encoding, deltas=deltas, repeats_start=history_start == "repeat")
    acting = ActingPolicy(policy._model, encoding, name="seconds", sha256=policy.sha256)
    samples = experiment.samples(encoding)["train"]
    session = Session(acting, execution=Execution(replan_every=1), fps=10)
    assert deltas.steps_back(10, place="toy") == (2, 0)
    for step in range(5):
        output = acting._model(collate([samples[step]], encoding.layout))
        assert output.actions is not None
        expected = encoding.action_range.denormalise(output.actions[0].double().numpy())
        assert session.act(observed(step)) == pytest.approx(expected[0], abs=1e-6)


def test_an_export_acts_as_its_run_does(run: RunDirectory, policy: Policy, tmp_path: Path) -> None:
    digest = vlatrack.export(run.path, tmp_path / "exported")
    exported = Policy.load(tmp_path / "exported", device="cpu")
    assert exported.sha256 == policy.sha256 == digest
    for route in ("head", "tokens"):
        one, other = (each.act(observed(5), route=route) for each in (policy, exported))
        assert np.array_equal(one.actions, other.actions)
        assert one.actions.shape == (3, 2)
        assert one.seconds > 0


def test_a_batch_acts_as_each_observation_alone(policy: Policy) -> None:
    observations = [observed(0), replace(observed(7), instruction="push the square, please")]
    for route in ("head", "tokens"):
        together = policy.act_batch(observations, route=route)
        for chunk, observation in zip(together, observations, strict=True):
            assert chunk.actions == pytest.approx(policy.act(observation, route=route).actions, abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_says_how_the_history_of_its_data_starts(run: RunDirectory, tmp_path: Path) -> None:
    spec = vlatrack.load_spec(TOY, (*SHORT, "data.history_start=shorter", "train.group_by_length=true"))
    assert not Policy.load(vlatrack.train(spec, runs=tmp_path).path, device="cpu").interface.repeats_start
    assert Policy.load(run.path, device="cpu").interface.repeats_start


def test_a_history_that_is_shorter_at_the_start_acts_in_a_batch_as_alone(shorter: ActingPolicy) -> None:
    policy = shorter
    now, before = policy.see(observed(1)), policy.see(observed(0))
    rows = [[now], [before, now], [now], [now, now]]
    lengths = [len(policy._prompt(row)) for row in rows]
    assert lengths[0] == lengths[2] < lengths[1] == lengths[3]
    for route in ("head", "tokens"):
        together = policy.act_on(rows, route=route)
        for row, chunk in zip(rows, together, strict=True):
            assert chunk.actions == pytest.approx(policy.act_on([row], route=route)[0].actions, abs=1e-5)
        assert route == "tokens" or not np.array_equal(together[0].actions, together[3].actions)


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("dtype", [None, "fp32", "bf16"])
def test_a_policy_acts_with_each_dtype_and_cache_as_without(
    run: RunDirectory, policy: Policy, dtype: str | None, static_cache: bool
) -> None:
    other = Policy.load(run.path, device="cpu", dtype=dtype, static_cache=static_cache)
    stored = {parameter.dtype for parameter in other._model.parameters()}
    assert stored == {torch.bfloat16 if dtype == "bf16" else torch.float32}
    for step in (5, 0, 7):
        for count in (1, 2):
            expected = policy.act_batch([observed(step)] * count, route="tokens")
            found = other.act_batch([observed(step)] * count, route="tokens")
            assert dtype == "bf16" or all(
                np.array_equal(one.actions, same.actions) for one, same in zip(found, expected, strict=True)
            )
        assert other.act(observed(step)).actions == pytest.approx(
            policy.act(observed(step)).actions, abs=0.03 if dtype == "bf16" else 1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("static_cache", [False, True])
def test_a_compiled_policy_acts_as_one_that_is_not(
    run: RunDirectory, policy: Policy, monkeypatch: pytest.MonkeyPatch, static_cache: bool
) -> None:
    graphs = []
    backend = lambda graph, inputs: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(acting, "compile_blocks", partial(compile_blocks, backend=backend))
    monkeypatch.setattr(acting, "missing_compiler", lambda _: None)
    compiled = Policy.load(run.path, device="cpu", compile=True, static_cache=static_cache)
    for instruction in (EPISODE.task, "push"):  # prompts of several lengths
        seen = replace(observed(5), instruction=instruction)
        assert compiled.act(seen).actions == pytest.approx(policy.act(seen).actions, abs=1e-5)
        assert compiled.act(seen, route="tokens").actions == pytest.approx(
            policy.act(seen, route="tokens").actions, abs=1e-6
        )
    assert graphs


def test_compiling_without_a_compiler_is_one_line(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "missing_compiler", lambda _: "a C++ compiler (g++)")
    with pytest.raises(SpecError, match=r"compile: needs a C\+\+ compiler \(g\+\+\), which is not on the path"):
        Policy.load(run.path, device="cpu", compile=True)


def test_images_of_several_sizes_are_seen_together_as_each_alone(policy: Policy) -> None:
    large = np.repeat(np.repeat(FRAMES[3], 3, axis=0), 3, axis=1)
    observations = [observed(1), replace(observed(2), images={"front": large}), observed(3)]
    together = policy.see_batch(observations)
    assert [moment.observation for moment in together] == observations
    for moment, observation in zip(together, observations, strict=True):
        assert np.array_equal(moment.codes["front"], policy.see(observation).codes["front"])
    assert policy.see_batch([]) == []


def test_images_of_another_size_are_resized(policy: Policy) -> None:
    large = np.repeat(np.repeat(FRAMES[3], 3, axis=0), 3, axis=1)
    expected = policy.act(observed(3)).actions
    assert policy.act(replace(observed(3), images={"front": large})).actions == pytest.approx(expected, abs=0.2)


def test_token_actions_are_centres_of_bins(policy: Policy) -> None:
    encoding = policy._encoding
    normalised = encoding.action_range.normalise(policy.act(observed(3), route="tokens").actions)
    distance = np.abs(normalised[..., None] - encoding.bins.centres).min(-1)
    assert distance.max() < 1e-6


@pytest.mark.parametrize(
    ("execution", "asked"),
    [(Execution(), [0, 3]), (Execution(replan_every=2), [0, 2, 4]), (Execution(ensemble=0.1), [0, 1, 2, 3, 4])],
)
def test_a_chunk_is_asked_for_when_it_is_due(policy: Policy, execution: Execution, asked: list[int]) -> None:
    session, found = Session(policy, execution=execution), []
    for step in range(5):
        if session.wants_chunk:
            found.append(step)
        session.act(observed(step))
    assert found == asked


@pytest.mark.parametrize("execution", [Execution(), Execution(replan_every=2), Execution(ensemble=0.1)])
def test_a_session_that_sees_only_what_a_chunk_needs_acts_as_one_that_sees_each_step(
    policy: Policy, execution: Execution
) -> None:
    stepwise, stretchwise = (Session(policy, execution=execution) for _ in range(2))
    expected = [stepwise.act(observed(step)) for step in range(9)]
    actions: list[np.ndarray] = []
    stretchwise.see(observed(0))
    while len(actions) < 9:
        (chunk,) = policy.act_on([stretchwise.moments])
        stretchwise.take(chunk.actions)
        planned = stretchwise.planned()
        actions += list(planned)
        seen = min(len(planned), policy.interface.history)
        for step in range(len(actions) - seen + 1, len(actions) + 1):
            stretchwise.see(observed(step))
    assert np.array_equal(actions[:9], expected)


def test_an_ensemble_is_the_weighted_mean_of_what_all_chunks_say_about_a_step(policy: Policy) -> None:
    session = Session(policy, execution=Execution(ensemble=0.5))
    chunks = [np.arange(6.0).reshape(3, 2) + 100 * number for number in range(5)]
    said = []
    for chunk in chunks:
        session.take(chunk)
        said.append(session._next_action())
    weights = np.exp([0, -0.5, -1])
    assert said[0] == pytest.approx(chunks[0][0])
    assert said[1] == pytest.approx(np.average([chunks[0][1], chunks[1][0]], axis=0, weights=weights[:2]))
    assert said[4] == pytest.approx(np.average([chunks[2][2], chunks[3][1], chunks[4][0]], axis=0, weights=weights))


def test_after_a_reset_a_session_is_as_new(policy: Policy) -> None:
    session = Session(policy)
    first = [session.act(observed(step)) for step in range(2)]
    session.reset()
    assert np.array_equal([session.act(observed(step)) for step in range(2)], first)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"images": {"wrist": FRAMES[0]}},
            "lacks the image of front; the policy sees front, the observation has wrist",
        ),
        ({"images": {}}, "the observation has none"),
        ({"images": {"front": FRAMES[0].astype(np.float32)}}, r"front is float32 \[32, 32, 3\]; expected an RGB array"),
        ({"images": {"front": FRAMES[0][..., 0]}}, r"front is uint8 \[32, 32\]"),
        ({"images": {"front": [[1]]}}, "front is list"),
        ({"images": {"front": FRAMES[0][:0]}}, "front is empty"),
        ({"instruction": "  "}, "has no instruction"),
        ({"instruction": None}, "has no instruction"),
        ({"state": None}, "lacks the proprioceptive state, 2 numbers"),
        ({"state": np.zeros(3)}, r"the state is float64 \[3\]; expected 2 numbers"),
        ({"state": np.array(["a", "b"])}, "expected 2 numbers"),
        ({"state": np.array([0, np.nan])}, "NaN or infinity"),
    ],
)
def test_what_an_observation_lacks_is_one_line(policy: Policy, change: dict, told: str) -> None:
    with pytest.raises(ObservationError, match=told) as raised:
        policy.act(replace(observed(0), **change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("execution", "told"),
    [
        (Execution(replan_every=4), "a chunk has 3 steps; choose 1 to 3"),
        (Execution(replan_every=2, ensemble=0.1), "leave out replan_every"),
        (Execution(ensemble=-1.0), "use 0 or more"),
    ],
)
def test_chunks_that_cannot_be_executed_so_are_refused(policy: Policy, execution: Execution, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Session(policy, execution=execution)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VlatrackError, match="not a run directory"):
        Policy.load(tmp_path)
