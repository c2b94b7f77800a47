"""Checkpoints of two processes: shards of tensors, as good as a single file and as well guarded."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import TOY, Program
from safetensors import safe_open
from safetensors.torch import load_file

from vlatrack.runner.export import export_policy
from vlatrack.training.checkpoint.contents import stored_weights
from vlatrack.training.checkpoint.manifest import read_manifest

QUICK = (TOY, "train.max_steps=2", "train.checkpoint.every_steps=1", "tracking.system_every_s=null")
SHARDS = ("policy-00002-of-00002.safetensors", "training/states-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    program = Program(tmp_path_factory.mktemp("sharded"))
    try:
        done = program.run_many("run", *QUICK, "evaluate.open_loop=null")
        assert done.returncode == 0, done.stderr
        yield program.only_run()
    finally:
        program.close()


@pytest.fixture
def run(trained: Path, program: Program) -> Path:
    return Path(shutil.copytree(trained, program.folder / "runs" / "toy" / trained.name))


@pytest.mark.slow
def test_each_process_writes_what_it_holds_and_no_file_is_a_pickle(trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "step-00000002"
    listed = read_manifest(checkpoint).sha256
    assert {Path(name).suffix for name in listed} == {".safetensors", ".json", ".yaml"}
    for stem in ("policy", "training/states"):
        sizes = [(checkpoint / f"{stem}-0000{rank}-of-00002.safetensors").stat().st_size for rank in (1, 2)]
        assert max(sizes) < 1.5 * min(sizes)
    random = json.loads((checkpoint / "state.json").read_text())["random"]
    assert len({state["cpu"] for state in random}) == 2


@pytest.mark.slow
def test_an_export_is_one_plain_file_with_the_same_digest(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "step-00000002"
    digest = export_policy(checkpoint, tmp_path / "policy")
    assert digest == read_manifest(checkpoint).policy_sha256 == read_manifest(tmp_path / "policy").policy_sha256
    exported, stored = load_file(tmp_path / "policy" / "policy.safetensors"), stored_weights(checkpoint)
    assert {name: tuple(value.shape) for name, value in exported.items()} == stored.shapes
    assert all(value.equal(stored.read(name)) for name, value in exported.items())
    with safe_open(tmp_path / "policy" / "policy.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "altered"])
@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_that_is_missing_or_altered_is_one_line(program: Program, run: Path, shard: str, damage: str) -> None:
    file = run / "checkpoints" / "step-00000001" / shard
    content = file.read_bytes()
    file.unlink()
    if damage == "altered":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = program.run_many("run", "--resume", run, "--checkpoint", "step-00000001")
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    reason = "no such file" if damage == "missing" else "truncated or altered"
    assert len(told) == 1
    assert f"{file}: {reason}" in told[0]
    assert "exitcode  : 2 " in done.stderr


@pytest.mark.slow
def test_one_process_trains_on_with_weights_that_two_have_saved(program: Program, run: Path) -> None:
    done = program.run("run", *QUICK, "evaluate.open_loop=null", f"init_from={run}@last", "name=child", "optim.lr=1e-9")
    assert done.returncode == 0, done.stderr
    (child,) = (program.folder / "runs" / "child").iterdir()
    before, after = (stored_weights(path / "checkpoints" / "step-00000002") for path in (run, child))
    assert all(before.read(name).allclose(after.read(name), atol=1e-6) for name in before.shapes)


@pytest.mark.slow
def test_copies_of_a_policy_are_stored_once_and_one_process_goes_on_with_them(program: Program) -> None:
    done = program.run_many("run", *QUICK, "evaluate.open_loop=null", "train.parallel.replicate=2", "optim.lr=1e-4")
    assert done.returncode == 0, done.stderr
    run = program.only_run()
    checkpoint = run / "checkpoints" / "step-00000002"
    stored = stored_weights(checkpoint)
    weights = {name: stored.read(name) for name in stored.shapes}
    assert sum(file.stat().st_size for file in checkpoint.glob("policy-*")) < 1.05 * sum(
        weight.nbytes for weight in weights.values()
    )
    resumed = program.run("run", "--resume", run, "--checkpoint", "step-00000001", "train.parallel.replicate=null")
    assert resumed.returncode == 0, resumed.stderr
    again = stored_weights(checkpoint)
    assert (checkpoint / "policy.safetensors").is_file()  # of one process
    assert all(again.read(name).allclose(weight, atol=1e-3) for name, weight in weights.items())
