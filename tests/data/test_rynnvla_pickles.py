"""Pickles of a stranger: what is no plain value never runs, and takes neither memory nor the process."""

import builtins
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from vlatrack.data.formats.rynnvla.unpickle import LARGEST, load_plain
from vlatrack.errors import DataError

PLAIN = {"token": [1, 255, 256, 65535, 70000, -100], "label": (-100, -1), "id": 7, "x": [1.5, None, "ä", [[]], {}]}


class Runs:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    pass


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_they_are(protocol: int) -> None:
    ids = [random.Random(0).randrange(65536) for _ in range(5000)]
    for value in (PLAIN, {"token": ids, "label": ids, "id": "seven"}, [(1, (2, (3, 4, 5, 6)))] * 3):
        assert load_plain(pickle.dumps(value, protocol=protocol), "x.pkl") == value


def _with_state() -> State:
    value = State()
    value.__dict__["token"] = [1]
    return value


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Runs(os.system, "touch {mark}"), "posix.system"),
        (Runs(builtins.eval, "open({mark!r}, 'w')"), "builtins.eval"),
        (Runs(builtins.exec, "open({mark!r}, 'w')"), "builtins.exec"),
        (Runs(builtins.getattr, Runs(builtins.__import__, "os"), "system"), "builtins.getattr"),
        (Runs(subprocess.Popen, ["touch", "{mark}"]), "subprocess.Popen"),
        (Runs(pickle.loads, b"cos\nsystem\n(S'touch'\ntR."), "_pickle.loads"),
        (_with_state(), "test_rynnvla_pickles.State"),
        (np.arange(5), "numpy._core.multiarray._reconstruct"),
        (np.int64(5), "numpy._core.multiarray.scalar"),
        (torch.arange(5), "torch._utils._rebuild_tensor_v2"),
        (bytearray(b"x"), "builtins.bytearray"),
        (1 + 2j, "builtins.complex"),
        (range(3), "builtins.range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_asks_for_python_objects_is_refused_by_its_name(value, named: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    if isinstance(value, Runs):
        function, arguments = value.call
        value = Runs(function, *(a.format(mark=str(mark)) if isinstance(a, str) else a for a in arguments))
    content = pickle.dumps({"token": value}, protocol=protocol)
    with pytest.raises(DataError) as refusal:
        load_plain(content, "3.pkl")
    assert str(refusal.value).startswith("3.pkl: refused")
    assert "\n" not in str(refusal.value)
    assert protocol == 2 or named in str(refusal.value)  # protocol 2 writes some names as Python 2 had them
    assert not mark.exists()


def test_only_instructions_that_build_plain_values_are_run() -> None:
    allowed = set()
    for code in (opcode.code.encode("latin1") for opcode in pickletools.opcodes):
        reason = ""
        try:
            load_plain(b"\x80\x04" + code + bytes(16) + b".", "x.pkl")
        except DataError as error:
            reason = str(error)
        if "at byte 2 " not in reason and "asks for" not in reason:
            allowed.add(code)
    containers = {b"]", b"}", b")", b"l", b"t", b"\x85", b"\x86", b"\x87"}
    numbers_and_texts = {b"K", b"M", b"J", b"G", b"N", b"X", b"\x8c"}
    of_the_stack = {b"(", b"a", b"e", b"s", b"u", b"0", b"q", b"r", b"h", b"j", b"\x94", b"\x95", b"."}
    assert allowed == containers | numbers_and_texts | of_the_stack


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x04]r\xff\xff\xff\x7f.", id="an entry of the memo with a huge number"),
        pytest.param(b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b".", id="a huge bytearray"),
        pytest.param(b"\x80\x04X\xff\xff\xff\xff.", id="a text longer than the file"),
        pytest.param(b"\x80\x04\x8a\xff" + b"\x01" * 255 + b".", id="a huge integer"),
        pytest.param(b"\x80\x04" + b"]" * 100_000 + b".", id="many lists"),
        pytest.param(
            b"\x80\x04}" + b")" + b"\x85" * 500_000 + b"Ns.", id="a key nested so deeply that hashing it crashes"
        ),
        pytest.param(b"\x80\x04" + b"]" + b"\x94]\x94" + b"h\x00a" * 10 + b"." * (LARGEST + 1), id="a huge file"),
        pytest.param(b"\x80\x04" + b"K\x01" * (LARGEST // 2) + b".", id="a huge file of numbers"),
    ],
)
def test_what_would_take_all_memory_or_the_process_is_refused(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            load_plain(content, "x.pkl")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_lists_in_lists_take_no_more_than_they_are_written_with() -> None:
    """Each of twenty lists holds the one before it ten times: it is small, until somebody would copy it out."""
    body = b"\x80\x04]\x94K\x01a"
    for number in range(20):
        body += b"]" + bytes([0x94]) + b"(" + b"h" + bytes([number]) + b"h" + bytes([number]) + b"e"
    value = load_plain(body + b".", "x.pkl")
    assert len(value) == 2


def test_damage_anywhere_is_one_line_or_another_plain_value() -> None:
    content, generator = pickle.dumps(PLAIN), random.Random(3)
    types, reasons = (dict, list, tuple, int, float, str, type(None)), []
    for trial in range(1000):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        if trial % 3 == 0:
            del damaged[generator.randrange(len(content)) :]
        try:
            assert isinstance(load_plain(bytes(damaged), "x.pkl"), types)
        except DataError as error:
            reasons.append(str(error))
    assert len(reasons) > 300
    assert all(reason.startswith("x.pkl: ") and "\n" not in reason for reason in reasons)


def test_nothing_of_a_hostile_name_reaches_the_terminal() -> None:
    with pytest.raises(DataError) as refusal:
        load_plain(b"\x80\x04cos\x1b]0;owned\x07\nsystem\n(tR.", "x.pkl")
    assert str(refusal.value).isprintable()


def test_reading_needs_no_module_of_the_pickle() -> None:
    """Not even the import of a module that a pickle names happens."""
    content = pickle.dumps({"token": [1]}).replace(b"token", b"antigravity"[:5])
    assert load_plain(content, "x.pkl") == {"antig": [1]}
    with pytest.raises(DataError, match=r"antigravity\.fly"):
        load_plain(b"\x80\x04cantigravity\nfly\n)R.", "x.pkl")
    assert "antigravity" not in sys.modules
