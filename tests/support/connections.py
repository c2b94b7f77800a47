"""What processes connect to, seen from outside with strace: every program that a command starts is followed."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_CALLS = "trace=connect,sendto,sendmsg,sendmmsg,execve"
_IPV4 = re.compile(r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]+)"\)')
_IPV6 = re.compile(r'sin6_port=htons\((\d+)\).*?inet_pton\(AF_INET6, "([^"]+)"')
_PROGRAM = re.compile(r'^(\d+) +execve\("([^"]+)".* (= 0|<unfinished \.\.\.>)$')
_STARTED_LATER = re.compile(r"^(\d+) +<\.\.\. execve resumed>.* = 0$")


@dataclass(frozen=True)
class Connections:
    """Where traced processes connected or sent to by network, as (address, port), and which programs they were."""

    destinations: frozenset[tuple[str, int]]
    programs: frozenset[str]

    @classmethod
    def of(cls, trace: str) -> "Connections":
        """What a file says that strace wrote."""
        lines = trace.splitlines()
        found = [match for line in lines for match in (*_IPV4.finditer(line), *_IPV6.finditer(line))]
        programs = [Path(program).name for program in _programs(lines)]
        return cls(frozenset((m[2], int(m[1])) for m in found), frozenset(programs))


def _programs(lines: Sequence[str]) -> Iterator[str]:
    """Those that were started; what another process did meanwhile may stand between the call and its result."""
    called = {}
    for line in lines:
        if (start := _PROGRAM.search(line)) is not None:
            called[start[1]] = start[2]
            if start[3] == "= 0":
                yield start[2]
        elif (later := _STARTED_LATER.search(line)) is not None and later[1] in called:
            yield called[later[1]]


def strace(output: Path) -> list[str]:
    """The beginning of a command line that follows a command; skips the test where that cannot be done."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed (apt install strace)")
    command = [found, "-f", "--seccomp-bpf", "-qq", "-s", "0", "-e", _CALLS, "-o", str(output)]
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace may not follow processes here: {probe.stderr.strip()}")
    return command


def bare_environment(home: Path, **variables: str) -> Mapping[str, str]:
    """An environment that says nothing of telemetry, nor that this is a test or a CI, which silences some."""
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home), **variables}


def connections_of(command: Sequence[str], environment: Mapping[str, str], output: Path) -> Connections:
    """Run a command to its end, and tell what it and all that it started connected to."""
    done = subprocess.run(
        [*strace(output), *command], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return Connections.of(output.read_text())
