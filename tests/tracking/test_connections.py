"""A tracked run, and what shows it, connects to its trackers and to nothing else, whatever the caller's environment."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from connections import Connections, bare_environment, connections_of, strace
from launching import running
from mlflow_server import MlflowServer
from wandb_double import WANDB_KEY, WandbDouble

TRAINER = Path(__file__).with_name("short_trainer.py")

RECORDED = """\
101 execve("/usr/bin/python3", [""...], 0x7ffd /* 20 vars */) = 0
101 connect(3, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT (No such file or directory)
102 execve("/opt/bin/wandb-core", [""...], 0x7ffd /* 20 vars */) = -1 ENOENT (No such file or directory)
104 execve("/opt/bin/git", [""...], 0x7ffd /* 20 vars */ <unfinished ...>
102 sendto(4, [{nlmsg_len=20, nlmsg_type=RTM_GETADDR}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=0}, 12) = 20
102 connect(5, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.1")}, 16 <unfinished ...>
103 connect(6, {sa_family=AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2001:db8::1", \
&sin6_addr), sin6_scope_id=0}, 28) = -1 ENETUNREACH (Network is unreachable)
103 sendto(7, ""..., 30, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.2")}, 16) = 30
103 sendmmsg(8, [{msg_hdr={msg_name={sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.3")}}}], 1) = 1
104 <... execve resumed>)                   = 0
103 sendto(9, ""..., 30, MSG_NOSIGNAL, NULL, 0) = 30
"""


def test_a_connection_anywhere_is_seen_in_what_strace_writes() -> None:
    seen = Connections.of(RECORDED)
    assert seen.destinations == {("192.0.2.1", 443), ("2001:db8::1", 80), ("192.0.2.2", 53), ("192.0.2.3", 53)}
    assert seen.programs == {"python3", "git"}


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def place(url: str) -> tuple[str, int]:
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    return address.hostname, address.port


def run_traced(tmp_path: Path, *backends: dict[str, object], **environment: str) -> Connections:
    fields = json.dumps(backends)
    command = [sys.executable, str(TRAINER), str(tmp_path / "runs" / "exp" / "run-1"), fields]
    return connections_of(command, bare_environment(tmp_path / "home", **environment), tmp_path / "trace")


@pytest.mark.slow
def test_a_run_connects_to_the_servers_of_its_trackers_alone(
    tmp_path: Path, mlflow_server: MlflowServer, wandb_server: WandbDouble
) -> None:
    seen = run_traced(
        tmp_path,
        {"kind": "mlflow", "options": {"tracking_uri": mlflow_server.url}},
        {"kind": "wandb"},
        {"kind": "tensorboard"},
        WANDB_BASE_URL=wandb_server.url,
        WANDB_API_KEY=WANDB_KEY,
    )
    assert "wandb-core" in seen.programs
    assert seen.destinations == {place(mlflow_server.url), place(wandb_server.url)}


@pytest.mark.slow
def test_a_run_without_servers_connects_to_nothing(tmp_path: Path) -> None:
    seen = run_traced(tmp_path, {"kind": "mlflow"}, {"kind": "wandb"}, {"kind": "tensorboard"})
    assert "wandb-core" in seen.programs
    assert seen.destinations == set()


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--mlflow"]])
def test_status_and_the_user_interface_connect_to_nothing(
    tmp_path: Path, stored_run_dir: Path, eventually: Callable[..., None], options: list[str]
) -> None:
    runs, environment = str(stored_run_dir.parent.parent), bare_environment(tmp_path / "home")
    vlatrack = [sys.executable, "-m", "vlatrack"]
    status = connections_of([*vlatrack, "status", "--runs", runs], environment, tmp_path / "status")
    assert status.destinations == set()
    command = [*strace(tmp_path / "ui"), *vlatrack, "ui", *options, "--runs", runs, "--port", "0"]
    with running(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as shown:
        assert shown.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+", shown.stdout.readline())
        assert url is not None
        eventually(lambda: answers(f"{url[0]}/{'health' if options else 'api/runs'}"))
        assert answers(f"{url[0]}/")
        for program in psutil.Process(shown.pid).children():
            program.send_signal(signal.SIGTERM)  # strace itself keeps the signal that it gets
        shown.wait(60)
    assert Connections.of((tmp_path / "ui").read_text()).destinations == set()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
