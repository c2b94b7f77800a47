"""The server on real sockets: both protocols on one port, batches across clients, and clients that do it no good."""

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from served import DIMS, HELLO, HORIZON, FakePolicy, Served, ask, asked, image, read, running, say
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from vlatrack.data.deltas import Deltas
from vlatrack.errors import ServingError, SpecError
from vlatrack.serving.client import PolicyClient
from vlatrack.serving.codec import pack_openpi
from vlatrack.serving.port import open_port


@pytest.fixture(scope="module")
def policy() -> FakePolicy:
    return FakePolicy()


@pytest.fixture(scope="module")
def server(policy: FakePolicy) -> Iterator[Served]:
    with running(policy) as served:
        yield served


def page(server: Served, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def steps(reply: dict) -> list[float]:
    return reply["actions"][:, 0].tolist()


# --- openpi ---------------------------------------------------------------------------------------


def test_openpi_gets_the_metadata_and_then_a_whole_chunk_for_each_observation(server: Served) -> None:
    with server.connect() as connection:
        metadata = read(connection)
        first, second = ask(connection, asked(1)), ask(connection, asked(2))
    assert metadata == server.service.metadata
    assert metadata["cameras"] == ["front"]
    assert (metadata["history"], metadata["horizon"], metadata["action_dim"]) == (2, HORIZON, DIMS)
    assert (metadata["state_dim"], metadata["policy"], metadata["policy_sha256"]) == (2, "fake/policy", "f" * 64)
    assert first["actions"].shape == (HORIZON, DIMS)
    assert first["actions"].dtype == np.float64
    assert steps(first) == [100, 101, 102]
    assert [key for key, value in first.items() if isinstance(value, np.ndarray)] == ["actions"]
    assert set(first["server_timing"]) == {"infer_ms"}
    assert first["policy_timing"] == {"infer_ms": 1.0}
    assert second["server_timing"]["prev_total_ms"] > 0


def test_a_connection_remembers_the_step_before_until_an_episode_begins(server: Served) -> None:
    with server.connect() as connection, server.connect() as other:
        read(connection), read(other)
        assert steps(ask(connection, asked(1)))[0] == 100
        assert steps(ask(other, asked(5)))[0] == 500  # a client of its own
        assert steps(ask(connection, asked(2)))[0] == 210
        assert steps(ask(connection, asked(3)))[0] == 320
        assert steps(ask(connection, asked(4, reset=True)))[0] == 400
        assert steps(ask(connection, asked(5, prompt="pull")))[0] == 500
        stacked = np.stack([image(7), image(8)])
        assert steps(ask(connection, asked(0, prompt="pull", **{"observation/image": stacked})))[0] == 870


def test_a_connection_finds_the_frames_of_a_policy_that_counts_seconds_by_the_rate_of_its_steps() -> None:
    policy = FakePolicy(deltas=Deltas((-0.3, 0.0)))
    with running(policy, fps=10) as server, server.connect() as connection, server.connect("/vla-eval") as stepwise:
        metadata = read(connection)
        assert (metadata["history_deltas"], metadata["tolerance_s"], metadata["fps"]) == ([-0.3, 0.0], None, 10)
        firsts = [steps(ask(connection, asked(step)))[0] for step in range(1, 7)]
        assert firsts == [110, 210, 310, 410, 520, 630], "before an episode its first step stands for earlier ones"
        stacked = np.stack([image(7), image(8)])
        assert steps(ask(connection, asked(0, **{"observation/image": stacked})))[0] == 870, "all that is to be seen"
        assert steps(ask(connection, asked(9)))[0] == 980, "as after an episode's first step"
        moves = []
        for number in range(1, 8):
            say(stepwise, "observation", observed(number), number)
            moves.append(read(stepwise)["payload"]["actions"][0])
        assert moves == [110, 111, 112, 410, 411, 412, 740], "a new chunk every three steps"


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (asked(1, **{"observation/image": None, "observation/side": image(1)}), "lacks the image of front"),
        (asked(1, **{"observation/side": image(1)}), "an unknown camera, 'observation/side'"),
        (asked(1, **{"observation/state": None}), "lacks the proprioceptive state"),
        (b"\xc1\xff", "frame: no msgpack"),
        ("an observation", "frame: is text"),
        (pack_openpi([]), "not a list"),
        (pack_openpi({"type": "hello", "payload": HELLO, "seq": 1}), "connect to the path /vla-eval"),
    ],
)
def test_openpi_is_told_in_a_text_and_the_connection_is_closed(server: Served, request_, told: str) -> None:
    with server.connect() as other, server.connect() as connection:
        read(other), read(connection)
        text = ask(connection, request_)
        assert isinstance(text, str)
        assert told in text
        with pytest.raises(ConnectionClosedError) as closed:
            connection.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        assert steps(ask(other, asked(1)))[0] == 100


def test_the_client_that_ships_acts_and_says_what_the_server_said(server: Served) -> None:
    with PolicyClient(f"ws://127.0.0.1:{server.port}/openpi") as client:
        assert client.metadata == server.service.metadata
        moves = [client.act({"front": image(value)}, "push", np.zeros(2))[0, 0] for value in (1, 2)]
        client.reset()
        moves.append(client.act({"front": image(3)}, "push", np.zeros(2))[0, 0])
        assert moves == [100, 210, 300]
        with pytest.raises(ServingError, match="the server refused: observation: lacks the image of front"):
            client.act({"side": image(1)}, "push", np.zeros(2))


def test_the_client_says_in_one_line_that_there_is_no_server_or_none_any_more() -> None:
    with running(FakePolicy(), api_key="a secret") as server:
        address = f"ws://127.0.0.1:{server.port}/openpi"
        with pytest.raises(ServingError, match=r"no policy is served there \(.*401"):
            PolicyClient(address, api_key="other")
        client = PolicyClient(address, api_key="a secret")
    for _ in range(2):
        with pytest.raises(ServingError, match=r"has closed the connection \(.*1001"):
            client.act({"front": image(1)}, "push", np.zeros(2))
    client.close()
    for gone in (address, "http://127.0.0.1:1"):
        with pytest.raises(ServingError, match="no policy is served there"):
            PolicyClient(gone)


# --- vla-eval -------------------------------------------------------------------------------------


def observed(value: int, **others: object) -> dict:
    return {"images": {"agentview": image(value)}, "states": [0.0, 0.0], "task_description": "push", **others}


def test_vla_eval_gets_one_action_for_each_observation_and_a_chunk_serves_several(
    server: Served, policy: FakePolicy
) -> None:
    policy.batches.clear()
    policy.encoded = 0
    with server.connect("/vla-eval") as connection:
        say(connection, "hello", HELLO, 1)
        hello = read(connection)
        assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 1, 1)
        assert hello["payload"]["observation_params"] == {"send_wrist_image": False, "send_state": True}
        assert {"harness_version", "model_server", "capabilities"} <= hello["payload"].keys()
        say(connection, "episode_start", {"task": {"name": "x"}, "mode": "sync"}, 2)
        moves = []
        for number in range(1, 6):
            say(connection, "observation", observed(number), 2 + number)
            reply = read(connection)
            assert (reply["type"], reply["seq"]) == ("action", 2 + number)
            assert reply["payload"]["actions"].shape == (DIMS,)
            moves.append(reply["payload"]["actions"][0])
        assert moves == [100, 101, 102, 430, 431]  # the second chunk saw the frame of the step before
        assert policy.batches == [1, 1]
        assert policy.encoded == 3  # of five frames
        say(connection, "episode_end", {"success": True}, 8)
        say(connection, "episode_start", {"task": {}}, 9)
        say(connection, "observation", observed(9), 10)
        assert read(connection)["payload"]["actions"][0] == 900


@pytest.mark.parametrize(
    ("kind", "payload", "told"),
    [
        ("observation", observed(1, images={"wrist": image(1)}), "lacks the image of front"),
        ("observation", observed(1, images={"agentview": image(1), "top": image(1)}), "unknown camera, 'images/top'"),
        ("observation", {"__image__": True, "format": "png", "data": b"\x89PNG"}, "image: the png is damaged"),
        ("observation", observed(1, task_description="break"), "the policy failed (RuntimeError)"),
        ("hello", HELLO | {"protocol_version": 2}, "of protocol version 2; expected 1"),
        ("dance", {}, "of unknown type 'dance'"),
    ],
)
def test_vla_eval_is_told_under_the_number_of_its_message_and_goes_on(
    server: Served, kind: str, payload: dict, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with server.connect("/vla-eval") as connection:
        say(connection, kind, payload, 41)
        reply = read(connection)
        assert (reply["type"], reply["seq"]) == ("error", 41)
        assert told in reply["payload"]["error"]
        assert "secret" not in reply["payload"]["error"]
        say(connection, "observation", observed(1), 42)
        assert read(connection)["payload"]["actions"].tolist() == [100, 100]


@pytest.mark.parametrize("frame", ["text", b"\xc1", pack_openpi([1]), pack_openpi({"type": "observation", "seq": 3})])
def test_a_message_without_a_number_is_answered_under_zero(server: Served, frame: str | bytes) -> None:
    with server.connect("/vla-eval") as connection:
        connection.send(frame)
        reply = read(connection)
        assert (reply["type"], reply["seq"]) == ("error", 0)


def test_replanning_shortens_chunks_and_another_instruction_ends_them() -> None:
    settings = {"replan_every": 2, "observation_params": {"seed": 7}}
    with running(FakePolicy(history=1), **settings) as server, server.connect("/vla-eval") as connection:
        say(connection, "hello", HELLO, 1)
        assert read(connection)["payload"]["observation_params"]["seed"] == 7
        moves = []
        for number, task in enumerate(["push"] * 3 + ["pull"], start=1):
            say(connection, "observation", observed(number, task_description=task), number)
            moves.append(read(connection)["payload"]["actions"][0])
    assert moves == [100, 101, 300, 400]


# --- one port -------------------------------------------------------------------------------------


def test_who_speaks_first_at_another_path_speaks_vla_eval(server: Served) -> None:
    with server.connect("/") as silent, server.connect("/?model=1") as first, server.connect("/x") as hasty:
        say(first, "hello", HELLO, 1)
        hasty.send(pack_openpi(asked(1)))
        assert read(first)["type"] == "hello"
        assert read(hasty) == server.service.metadata
        assert steps(read(hasty))[0] == 100
        assert read(silent) == server.service.metadata
        assert steps(ask(silent, asked(2)))[0] == 200


def test_pages_tell_health_metadata_and_latencies(server: Served) -> None:
    assert page(server, "/healthz") == (200, "OK\n")
    assert json.loads(page(server, "/health?now")[1]) == {"status": "ok"}
    assert json.loads(page(server, "/metadata")[1]) == server.service.metadata
    assert page(server, "/openpi")[0] == 426
    with server.connect() as connection:
        read(connection)
        ask(connection, asked(1))
        figures = json.loads(page(server, "/metrics")[1])
    assert figures["requests"] >= 1
    assert figures["connected"] >= 1
    assert 0 < figures["request_ms"]["p50"] <= figures["request_ms"]["p95"]
    assert figures["inference_ms"]["p50"] > 0
    assert figures["batches"]["1"] >= 1
    assert "requests of" in server.service.latencies.line()


def test_a_key_is_asked_of_all_but_health_checks() -> None:
    with running(FakePolicy(), api_key="hüsh") as server:
        address = f"ws://127.0.0.1:{server.port}/"
        for headers in ({}, {"Authorization": "Api-Key other"}, {"Authorization": "hüsh"}):
            with pytest.raises(InvalidStatus) as refused:
                server.connect(additional_headers=headers)
            assert refused.value.response.status_code == 401
        assert page(server, "/healthz")[0] == page(server, "/health")[0] == 200
        assert page(server, "/metadata")[0] == page(server, "/metrics")[0] == 401
        with PolicyClient(address, api_key="hüsh") as client:
            assert client.act({"front": image(1)}, "push", np.zeros(2))[0, 0] == 100


def test_clients_that_wait_share_the_next_pass_and_one_that_breaks_it_costs_no_other_its_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    policy = FakePolicy()
    with running(policy) as server, ThreadPoolExecutor(8) as pool, ExitStack() as clients:
        connections = [clients.enter_context(server.connect()) for _ in range(6)]
        for connection in connections:
            read(connection)
        policy.may_compute.clear()
        connections[0].send(pack_openpi(asked(1)))
        assert policy.computes.wait(20)
        for value, connection in enumerate(connections[1:], start=2):
            connection.send(pack_openpi(asked(value, prompt="break" if value == 4 else "push")))
            assert connection.ping().wait(20)  # the server has read the request
        assert page(server, "/healthz")[0] == 200  # and has had several turns since
        policy.may_compute.set()
        answers = list(pool.map(read, connections))
    assert [steps(answer)[0] for answer in answers if isinstance(answer, dict)] == [100, 200, 300, 500, 600]
    assert "the policy failed (RuntimeError)" in answers[3]
    assert policy.batches == [1, 5, 1, 1, 1, 1, 1]


def test_pings_new_clients_and_health_checks_do_not_wait_for_the_policy() -> None:
    policy = FakePolicy()
    with running(policy) as server, server.connect() as busy:
        read(busy)
        policy.may_compute.clear()
        busy.send(pack_openpi(asked(1)))
        assert policy.computes.wait(20)
        assert busy.ping().wait(5)
        assert page(server, "/healthz")[0] == 200
        with server.connect() as another:
            assert read(another) == server.service.metadata
        policy.may_compute.set()
        assert steps(read(busy))[0] == 100


# --- what does it no good -------------------------------------------------------------------------


def test_a_message_that_is_too_long_ends_its_own_connection_alone() -> None:
    with running(FakePolicy(), largest_message=100_000) as server, server.connect() as other:
        read(other)
        with server.connect() as connection:
            read(connection)
            connection.send(bytes(100_001))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=20)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert steps(ask(other, asked(1)))[0] == 100


@pytest.mark.parametrize("words", [b"\x00\xff garbage\r\n\r\n", b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", b""])
def test_what_is_no_websocket_disturbs_nobody(server: Served, words: bytes) -> None:
    with server.connect() as other:
        read(other)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
            raw.sendall(words)
        assert steps(ask(other, asked(1)))[0] == 100


def test_a_client_that_leaves_while_the_policy_computes_disturbs_nobody() -> None:
    policy = FakePolicy()
    with running(policy) as server, server.connect() as other:
        read(other)
        with server.connect() as leaving:
            read(leaving)
            policy.may_compute.clear()
            leaving.send(pack_openpi(asked(1)))
            assert policy.computes.wait(20)
            leaving.socket.shutdown(socket.SHUT_RDWR)
        policy.may_compute.set()
        assert steps(ask(other, asked(2)))[0] == 200


def test_when_it_ends_clients_are_told_that_it_goes_away() -> None:
    with ExitStack() as clients:
        with running(FakePolicy()) as server:
            connection = clients.enter_context(server.connect())
            read(connection)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


def test_clients_are_told_so_while_the_policy_computes_too() -> None:
    policy = FakePolicy()

    def closed_with(connection) -> int | None:
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=20)
        policy.may_compute.set()
        return None if closed.value.rcvd is None else closed.value.rcvd.code

    with ThreadPoolExecutor(1) as pool, ExitStack() as clients:
        with running(policy) as server:
            connection = clients.enter_context(server.connect())
            read(connection)
            policy.may_compute.clear()
            connection.send(pack_openpi(asked(1)))
            assert policy.computes.wait(20)
            code = pool.submit(closed_with, connection)
        assert code.result() == 1001


def test_a_port_that_is_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"--port {port}: is in use on 127.0.0.1"):
            open_port("127.0.0.1", port)
    with pytest.raises(ServingError, match=r"--host 203\.0\.113\.9: cannot listen there"):
        open_port("203.0.113.9", 0)
    with pytest.raises(ServingError, match="no address to listen on"):
        open_port("no such host.invalid", 0)


def test_what_a_policy_cannot_do_is_said_before_the_first_client() -> None:
    from vlatrack.serving.server import ServerSettings

    with pytest.raises(SpecError, match="a chunk has 3 steps"):
        ServerSettings(replan_every=4).check(FakePolicy().interface)
    with pytest.raises(ServingError, match="has no camera side"):
        ServerSettings(cameras={"side": "images/side"}).check(FakePolicy().interface)
    with pytest.raises(SpecError, match=r"^fps: the policy sees images at -0.5, 0 s; give the env steps in a second"):
        ServerSettings().check(FakePolicy(deltas=Deltas((-0.5, 0.0))).interface)
    with pytest.raises(ServingError, match=r"^--fps: the policy counts env steps, not seconds; leave it out"):
        ServerSettings(fps=10).check(FakePolicy().interface)
