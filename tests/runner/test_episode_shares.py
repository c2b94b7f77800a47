"""Several processes divide the episodes of one evaluation: each is run once, whatever becomes of them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import running
from shares_storm import divide

from vlatrack.errors import RunError
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.evaluation.rows import EpisodeRow
from vlatrack.runner import episode_shares
from vlatrack.runner.episode_shares import EpisodeShares
from vlatrack.runner.evaluation_folder import EvaluationFolder

LEFT = [".lock", "episodes.csv", "episodes.json", "evaluation.json"]
ORDER = [EpisodeId("push", str(number), str(number)) for number in range(6)]
DESCRIPTION = {"set": {"max_steps": 7}, "versions": {}, "acting": {}, "policy_sha256": "a", "forced": []}

HOLDER = """
import sys
from pathlib import Path
from vlatrack.runner.episode_shares import EpisodeShares
shares = EpisodeShares.join(Path(sys.argv[1]))
print(shares.claim(range(6)), flush=True)
input()
"""


def row(number: int) -> EpisodeRow:
    return EpisodeRow.of(ORDER[number], "success", steps=number, reward=0.0, latencies=[])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "result"


def opened(path: Path, **changes: object) -> EvaluationFolder:
    return EvaluationFolder.open(path, {**DESCRIPTION, **changes}, ORDER)


@pytest.fixture
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which has claimed the first episode."""
    folder.mkdir()
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        yield process


def test_episodes_of_a_killed_process_are_taken_over_and_those_of_a_living_one_are_not(folder: Path, holder) -> None:
    ours = opened(folder)
    assert [ours.claim() for _ in range(6)] == [1, 2, 3, 4, 5, None]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert [ours.claim(), ours.claim()] == [0, None]
    for number in range(6):
        ours.append(row(number))
    assert ours.is_complete
    ours.close()


def test_many_processes_never_claim_the_same_episode(folder: Path) -> None:
    folder.mkdir()
    shares = [EpisodeShares.join(folder) for _ in range(8)]
    found: list[list[int]] = [[] for _ in shares]

    def claim(index: int) -> None:
        found[index].extend(iter(lambda: shares[index].claim(range(300)), None))

    threads = [threading.Thread(target=claim, args=[index]) for index in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for numbers in found for number in numbers) == list(range(300))
    for share in shares:
        share.leave()


def test_only_one_takes_over_what_a_process_has_left(folder: Path) -> None:
    gone = opened(folder)
    assert [gone.claim(), gone.claim()] == [0, 1]
    gone.append(row(0))
    gone.close()
    first, second = opened(folder), opened(folder)
    assert [first.rows, second.rows] == [[row(0)], [row(0)]], "its row stays"
    assert [one.claim() for one in (first, second) * 3] == [2, 3, 4, 5, 1, None]
    first.append(row(1))
    second.append(row(2))
    second.refresh()
    assert second.rows == [row(0), row(1), row(2)]
    assert (folder / "episodes.csv").read_text().count("\n") == 4, "the table has the rows of both"
    first.close()
    second.close()


def test_a_row_that_was_cut_off_counts_as_not_there(folder: Path) -> None:
    gone = opened(folder)
    for number in (gone.claim(), gone.claim()):
        gone.append(row(number))
    gone.close()
    (part,) = (folder / "parts").glob("*.csv")
    part.write_bytes(part.read_bytes()[:-3])
    (folder / "episodes.csv").unlink()
    again = opened(folder)
    assert again.rows == [row(0)]
    assert [again.claim() for _ in range(6)] == [2, 3, 4, 5, 1, None]
    again.close()


def test_a_claim_without_a_name_is_left_alone_until_its_writer_must_be_gone(folder: Path) -> None:
    ours = opened(folder)
    claim = folder / "claims" / "0.0"
    claim.touch()
    assert ours.claim() == 1
    long_ago = claim.stat().st_mtime - 2 * episode_shares.ALIVE_S
    os.utime(claim, (long_ago, long_ago))
    assert [ours.claim() for _ in range(5)] == [2, 3, 4, 5, 0]
    ours.close()


def test_the_end_leaves_one_table_in_the_order_of_the_set_and_nothing_of_the_division(folder: Path) -> None:
    first, second = opened(folder), opened(folder)
    for number in reversed(range(6)):
        (first, second)[number % 2].append(row(number))
    for one in (first, second):
        one.refresh()
        with one.finishing():
            assert one.is_finished == (one is second)
            one.finish(one.rows, {"episodes": 6})
    late = opened(folder)
    assert (late.claim(), late.is_complete) == (None, True)
    for one in (second, first, late):
        one.close()
    assert [line.split(",")[1] for line in (folder / "episodes.csv").read_text().splitlines()[1:]] == list("012345")
    assert json.loads((folder / "evaluation.json").read_text())["summary"] == {"episodes": 6}
    assert sorted(file.name for file in folder.iterdir()) == LEFT


def test_a_claim_that_was_removed_with_the_rest_is_not_run_again(folder: Path) -> None:
    late, first = opened(folder), opened(folder)
    for number in range(6):
        first.append(row(number))
    with first.finishing():
        first.finish(first.rows, {})
    first.close()
    assert late.rows == [], "it has not looked since"
    assert late.claim() is None
    assert late.is_complete
    late.close()


def test_another_evaluation_does_not_join(folder: Path) -> None:
    ours = opened(folder)
    with pytest.raises(RunError, match=r"holds another evaluation \(set.max_steps: 7 -> 8\)"):
        opened(folder, set={"max_steps": 8})
    assert len(list((folder / "parts").glob("*.csv"))) == 1
    ours.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whoever_is_killed_and_when_each_episode_has_one_row_and_is_run_again_only_after_a_kill(
    seed: int, tmp_path: Path
) -> None:
    assert divide(tmp_path, 400, kills=20, seed=seed) == [0, 0, 0]
    results, notes = tmp_path / "results", tmp_path / "notes"
    rows = (results / "episodes.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in rows] == list(range(400))
    begun = [len(file.read_text().splitlines()) for file in notes.iterdir()]
    assert len(begun) == 400
    assert sum(begun) <= 400 + 20, "each kill costs one episode at most"
    assert json.loads((results / "evaluation.json").read_text())["summary"] == {"episodes": 400}
    assert sorted(file.name for file in results.iterdir()) == LEFT
