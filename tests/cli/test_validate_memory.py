"""`vlatrack validate --memory`: what a training needs, and whether a GPU has it."""

import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from program import TOY
from typer.testing import CliRunner, Result

from vlatrack.bench.memory import Gpus
from vlatrack.cli.main import app
from vlatrack.cli.memory import parse_gpus, parse_memory
from vlatrack.errors import SpecError

ROOT = Path(__file__).parents[2]


def validate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, words)], env={"COLUMNS": "120"}, catch_exceptions=False)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("24G", 24 * 10**9),
        ("80GiB", 80 << 30),
        ("1.5GiB", 3 << 29),
        ("500MiB", 500 << 20),
    ],
)
def test_a_size_of_memory_has_a_unit(size: str, expected: int) -> None:
    assert parse_memory(size) == expected


@pytest.mark.parametrize("size", ["80", "GB", "-1GB", "0GB", "80 apples", "80GBs", ""])
def test_a_size_that_is_none_is_refused_in_one_line(size: str) -> None:
    with pytest.raises(SpecError, match=r"^--gpu-memory .*: expected a size with its unit, such as 80GB"):
        parse_memory(size)


@pytest.mark.parametrize(("number", "expected"), [("1", (1, 1)), ("8", (8, 1)), ("2x8", (8, 2))])
def test_gpus_are_a_number_or_machines_times_gpus(number: str, expected: tuple[int, int]) -> None:
    assert parse_gpus(number) == Gpus(*expected)


@pytest.mark.parametrize("number", ["", "0", "-1", "2x", "x2", "2x0", "eight", "1.5"])
def test_a_number_of_gpus_that_is_none_is_refused_in_one_line(number: str) -> None:
    with pytest.raises(SpecError, match=r"^--gpus .*: expected a number such as 8, or machines x GPUs such as 2x8$"):
        parse_gpus(number)


@pytest.mark.slow
def test_the_memory_of_several_gpus_is_shown_for_each_of_them() -> None:
    result = validate("--memory", TOY, "--gpus", "2x2")
    assert result.exit_code == 0
    told = " ".join(result.output.split())
    assert "GiB on each GPU" in told
    assert "2 copies of the policy, each sharded over 2 GPUs" in told


def test_memory_is_shown_with_what_it_assumes() -> None:
    result = validate("--memory", TOY)
    assert result.exit_code == 0
    rows = dict(
        re.findall(r"^(weights|gradients|optimiser states|activations|predicted peak) +(.*?) *$", result.output, re.M)
    )
    assert len(rows) == 5
    told = " ".join(result.output.split())
    assert re.search(r"parameters [\d,]+, [\d,]+ of them trainable", told)
    assert "8 rows (train.micro_batch) x 160 tokens" in told
    assert "one GPU; 2 micro batches" in told
    assert "eager code on the CPU's kernels; compiled code needs less" in told
    assert told.endswith("OK")


@pytest.mark.slow
def test_what_is_offloaded_and_averages_are_shown() -> None:
    result = validate("--memory", TOY, "train.memory.offload=parameters", "train.ema={decay: 0.9}")
    assert re.search(
        r"^in the host's memory  0\.04 GiB of each process: weights 0\.01, gradients 0\.01, optimiser states 0\.02, "
        r"averages 0\.01$",
        result.output,
        re.MULTILINE,
    )
    assert re.search(r"^optimiser states +0\.00 +0\.00", result.output, re.MULTILINE)
    averaged = validate("--memory", TOY, "train.ema={decay: 0.9}").output
    assert re.search(r"^averages of weights +0\.01 +0\.01", averaged, re.MULTILINE)
    assert "in the host's memory" not in averaged


def test_a_training_that_fits_is_told_so() -> None:
    result = validate(TOY, "--gpu-memory", "24GB")
    assert result.exit_code == 0
    assert re.search(r"^fits into 24GB: it needs 1\.\d\d GiB", result.output, re.MULTILINE)


@pytest.mark.slow
def test_a_training_that_does_not_fit_gets_words_with_which_it_does() -> None:
    words = [TOY, "train.micro_batch=2", "train.precision=bf16", "train.memory.keep=none"]
    limit = ("--gpu-memory", "1118.3MB")
    result = validate(*words, *limit)
    assert result.exit_code == 2
    assert "does not fit into 1118.3MB" in result.output
    assert "OK" not in result.output
    ready = re.findall(r"^fits with: (.*?)  ", result.output, re.MULTILINE)
    assert ready == ["train.micro_batch=1"]
    assert validate(*words, *ready[0].split(), *limit).exit_code == 0


@pytest.mark.slow
def test_where_the_weights_alone_are_too_large_settings_that_store_less_are_looked_for() -> None:
    result = validate(TOY, "train.micro_batch=1", "--gpu-memory", "1075MB")
    assert result.exit_code == 2
    assert "weights, gradients and optimiser states alone need 0.03 GiB, as they are stored" in result.output
    assert "no setting would: take a smaller backbone" in result.output


@pytest.mark.slow
def test_settings_that_store_less_fit_and_say_that_they_train_another_policy() -> None:
    sizes = "hidden_size: 1024, num_attention_heads: 8, num_key_value_heads: 8, intermediate_size: 4096"
    backbone = f"backbone={{kind: causal_lm, preset: small, sizes: {{{sizes}}}, max_seq_len: 160}}"
    words = [TOY, "train.micro_batch=1", backbone, "--gpu-memory", "3.4GB"]
    result = validate(*words)
    assert result.exit_code == 2
    ready = re.findall(r"^fits with: (.*?)  .*, which is another experiment$", result.output, re.MULTILINE)
    assert len(ready) == 4
    for each in ready:
        assert validate(*words, *shlex.split(each)).exit_code == 0


@pytest.mark.slow
def test_a_whole_7b_is_predicted_in_seconds_and_little_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlatrack", "validate", "--memory", ROOT / "experiments" / "libero_goal.yaml"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*map(str, command), "--gpu-memory", "80GB"], capture_output=True, text=True, timeout=280, cwd=tmp_path
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "parameters  7,052,667,911, 7,052,667,911 of them trainable" in done.stdout
    for row in ("weights +13.14 +13.14", "gradients +13.14 +13.14", "optimiser states +26.27 +26.27"):
        assert re.search(row, done.stdout)
    told = " ".join(done.stdout.split())
    assert "assumed: checkpoints/chameleon-7b, which is not here, has the sizes of the 7b preset" in told
    assert re.search(r"^fits into 80GB: it needs 60\.\d\d GiB", done.stdout, re.MULTILINE)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert after.ru_maxrss < 4 << 20  # KiB
