"""A policy behind a server acts here as if it were in this process; what its server does wrong is one line."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from foreign_server import foreign_server, to_the_right
from served import FakePolicy, image, running

from vlatrack import Execution, Observation, Session
from vlatrack.data.deltas import Deltas
from vlatrack.errors import NoAnswerError, ServingError, SpecError
from vlatrack.serving.cameras import libero_images
from vlatrack.serving.connection import shown_address
from vlatrack.serving.remote import PolicyServer, RemotePolicy, RequestKeys

KEYS = RequestKeys(
    {"observation/image": "front", "observation/wrist_image": "wrist"}, "observation/state", "prompt", "actions"
)
EXAMPLE = Observation({"front": image(0), "wrist": image(0)}, "push", np.zeros(2))


def seen(value: int) -> Observation:
    return Observation({"front": image(value), "wrist": image(100 + value)}, "push", np.full(2, 0.25, np.float32))


@pytest.fixture
def opened() -> Iterator[Any]:
    """Opens a policy at an address, and leaves it."""
    servers: list[PolicyServer] = []

    def open_policy(address: str, keys: RequestKeys | None = KEYS, timeout_s: float = 20, **options: Any):
        servers.append(PolicyServer(address, timeout_s=timeout_s, **options))
        return RemotePolicy(servers[-1], keys, EXAMPLE)

    yield open_policy
    for server in servers:
        server.close()


@pytest.mark.parametrize("execution", [Execution(), Execution(replan_every=2), Execution(ensemble=0.1)])
def test_a_served_policy_acts_in_a_session_as_it_does_here(opened: Any, execution: Execution) -> None:
    here = FakePolicy(cameras=("front", "wrist"))
    expected = Session(here, execution=execution)
    with running(FakePolicy(cameras=("front", "wrist"))) as server:
        there = opened(f"ws://127.0.0.1:{server.port}", None)
        assert there.interface == here.interface
        session = Session(there, execution=execution)
        for step in range(7):
            assert session.act(seen(step)).tolist() == expected.act(seen(step)).tolist()
        other = Session(there, execution=execution)
        assert other.act(seen(9))[0] == 900, "an episode beside it has a history of its own"


def test_a_served_policy_that_counts_seconds_is_shown_the_frames_of_these_moments(opened: Any) -> None:
    policy = FakePolicy(cameras=("front", "wrist"), deltas=Deltas((-0.4, 0.0)))
    with running(policy, fps=10) as server:
        there = opened(f"ws://127.0.0.1:{server.port}", None)
        assert there.interface == policy.interface
        for fps, back in ((10, 4), (5, 2)):
            session = Session(there, execution=Execution(replan_every=1), fps=fps)
            firsts = [session.act(seen(step))[0] for step in range(7)]
            assert firsts == [100 * step + 10 * max(0, step - back) for step in range(7)]
    with pytest.raises(SpecError, match=r"^fps: the policy sees images at -0.4, 0 s; give the env steps in a second$"):
        Session(policy)
    with pytest.raises(SpecError, match=r"has 4 steps a second, and none 0.4 s before another"):
        Session(policy, fps=4)


def test_a_server_of_others_is_asked_under_its_keys(opened: Any) -> None:
    with foreign_server(to_the_right) as server:
        policy = opened(server.address, api_key="a secret")
        assert policy.interface.cameras == ("front", "wrist")
        assert (policy.interface.horizon, policy.interface.action_dim) == (2, 2)
        (chunk,) = policy.act_on([[policy.see(seen(3))]])
        assert chunk.actions.tolist() == [[0.5, 0]] * 2
        assert chunk.seconds > 0
    example, request = server.requests
    assert not example["observation/image"].any()
    assert request.keys() == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    assert (request["observation/image"] == 3).all()
    assert (request["observation/wrist_image"] == 103).all()
    assert (request["observation/state"].dtype, request["observation/state"].tolist()) == (np.float64, [0.25, 0.25])
    assert server.keys == ["Api-Key a secret"]


def test_other_keys_and_no_state(opened: Any) -> None:
    keys = RequestKeys({"cam": "front"}, None, "task", "chunk")
    with foreign_server(lambda _: {"chunk": np.ones((1, 2))}) as server:
        policy = opened(server.address, keys)
        policy.act_on([[policy.see(Observation({"front": image(7)}, "push"))]])
    assert {key: np.shape(value) for key, value in server.requests[1].items()} == {"cam": (8, 8, 3), "task": ()}


def test_liberos_keys_go_to_the_camera_at_the_hand_and_to_the_other_one() -> None:
    cameras = ["agentview", "robot0_eye_in_hand"]
    assert libero_images(cameras) == {"observation/image": cameras[0], "observation/wrist_image": cameras[1]}
    with pytest.raises(SpecError, match=r"acting.request.images: both left and right could be observation/image"):
        libero_images(["left", "right"])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"action": np.ones((2, 2))}, "the answer has no array 'actions'; it has action"),
        ({"actions": [1, 2]}, "the answer has no array 'actions'"),
        ({"actions": np.ones(2)}, r"'actions' is float64 \[2\]; expected numbers \[steps of a chunk"),
        ({"actions": np.ones((0, 2))}, r"'actions' is float64 \[0, 2\]"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'observation/image'\n", "refused: KeyError: 'obser"),
        (None, "has closed the connection"),
    ],
)
def test_an_answer_that_is_none_is_one_line(opened: Any, answer: Any, told: str) -> None:
    with (
        foreign_server(lambda _: answer) as server,
        pytest.raises(ServingError, match=told) as raised,
    ):
        opened(server.address)
    assert "\n" not in str(raised.value)


def test_after_a_failure_the_next_request_goes_to_a_new_connection(opened: Any) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any] | str:
        return "it broke" if request["prompt"] == "break" else to_the_right(request)

    with foreign_server(answer) as server:
        policy = opened(server.address)
        with pytest.raises(NoAnswerError, match="the server refused: it broke"):
            policy.act_on([[policy.see(Observation(EXAMPLE.images, "break", EXAMPLE.state))]])
        assert policy.act_on([[policy.see(seen(1))]])[0].actions.shape == (2, 2)
        server.answer = lambda _: {"actions": np.ones((3, 2))}
        with pytest.raises(NoAnswerError, match=r"a chunk is \[3, 2\], the first \[2, 2\]"):
            policy.act_on([[policy.see(seen(1))]])
    assert len(server.keys) == 2


def test_a_server_that_stays_away_or_comes_back_with_another_policy_ends_it(opened: Any) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any] | None:
        return None if request["prompt"] == "break" else to_the_right(request)

    broken = Observation(EXAMPLE.images, "break", EXAMPLE.state)
    with foreign_server(answer, {"checkpoint": "pi0"}) as server:
        policy = opened(server.address, timeout_s=1)
        server.metadata = {"checkpoint": "pi1"}
        with pytest.raises(ServingError, match="another policy is served there now") as raised:
            policy.act_on([[policy.see(broken)]])
        assert not isinstance(raised.value, NoAnswerError)
        policy = opened(server.address, timeout_s=1)
    with pytest.raises(ServingError, match=r"no policy is served there .* start it again, and repeat") as raised:
        policy.act_on([[policy.see(broken)]])
    assert not isinstance(raised.value, NoAnswerError)


def test_a_server_that_does_not_answer_in_time_is_told(opened: Any) -> None:
    policy = FakePolicy(cameras=("front", "wrist"))
    with running(policy) as server:
        there = opened(f"ws://127.0.0.1:{server.port}", None, timeout_s=0.5)
        policy.may_compute.clear()
        try:
            with pytest.raises(NoAnswerError, match=r"no answer in 0.5 s"):
                there.act_on([[there.see(seen(1))]])
        finally:
            policy.may_compute.set()


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown_address("wss://me:secret@host:8000/path?token=abc#x") == "wss://host:8000/path"
    with pytest.raises(ServingError, match=r"ws://127.0.0.1:1: no policy is served there") as raised:
        PolicyServer("ws://me:secret@127.0.0.1:1?token=abc")
    assert "secret" not in str(raised.value)
    assert "abc" not in str(raised.value)
