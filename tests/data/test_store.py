"""What is computed once from a dataset is kept in files that are whole, or made anew."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlatrack.data.digests import DigestMemory, content_fingerprint, digests_of, hashing_all_files
from vlatrack.data.episodes import Episode
from vlatrack.data.store import episode_table
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.data.store.verified_files import write_verified
from vlatrack.errors import DataError

EPISODES, STEPS = 7, 5


class Source:
    """Frames of one colour: ten times the episode's number plus the step."""

    name, cameras, action_dim, state_dim, fps = "source", ("front", "wrist"), 2, 1, 10.0

    def __init__(self, *, bad: dict[int, str] | None = None, content: str = "a") -> None:
        self.bad, self.content, self.reads = bad or {}, content, 0

    def episodes(self) -> list[Episode]:
        return list(self.readable_episodes(lambda index, error: None))

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        self.reads += 1
        for index in range(EPISODES):
            if index in self.bad:
                on_bad(index, DataError(f"source: episode {index}: {self.bad[index]}"))
                continue
            numbers = np.arange(STEPS, dtype=np.float32)[:, None] + 10 * index
            yield Episode(index, "push" if index % 2 else "pull", np.hstack([numbers, -numbers]), numbers)

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        base = np.arange(STEPS, dtype=np.uint8) + 10 * episode.index + (100 if camera == "wrist" else 0)
        return np.broadcast_to(base[:, None, None, None], (STEPS, 4, 4, 3))

    def fingerprint(self) -> str:
        return self.content * 64


class ColourEncoder:
    """An image's codes are its colour; remembers which images it was asked to encode."""

    codes_per_side = 2

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode(self, frames: np.ndarray) -> np.ndarray:
        self.encoded += frames[:, 0, 0, 0].tolist()
        return np.broadcast_to(1000 + frames[:, :1, :1, 0].astype(np.int64), (len(frames), 2, 2))

    def fingerprint(self) -> str:
        return "e" * 64


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_table, "SHARD_STEPS", 2 * STEPS)


def opened(folder: Path, source: Source | None = None, **options: object) -> tuple[TokenStore, StoredDataset]:
    store = TokenStore(folder)
    return store, store.dataset(source or Source(), **options)


def colours(folder: Path, encoder: ColourEncoder, positions: list[int] | None = None) -> list[list[int]]:
    """The colours of the frames of each episode, by their codes in the store."""
    store, dataset = opened(folder)
    episodes = dataset.table.all() if positions is None else EpisodeList(dataset.table, positions)
    codes = store.codes(dataset, episodes, "front", encoder, first_id=4)
    ids = codes.gather(np.arange(len(episodes)), np.tile(np.arange(STEPS), (len(episodes), 1)))
    return (ids[:, :, 3] - 1000).tolist()


def expected(positions: range | list[int]) -> list[list[int]]:
    return [[10 * position + step for step in range(STEPS)] for position in positions]


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "codes").glob("*/*.arrow"))


def test_the_numbers_of_episodes_are_read_once_and_come_back_as_they_were(tmp_path: Path) -> None:
    source = Source()
    opened(tmp_path, source)
    _, dataset = opened(tmp_path, source)
    assert source.reads == 1
    for episode, wanted in zip(dataset.table.all(), source.episodes(), strict=True):
        assert (episode.index, episode.task) == (wanted.index, wanted.task)
        assert np.array_equal(episode.actions, wanted.actions)
        assert np.array_equal(episode.states, wanted.states)
    assert [len(shard.actions) for shard in dataset.table.shards] == [10, 10, 10, 5]
    assert not dataset.table.shards[0].actions.flags.owndata, "it lies in the file"


def test_frames_are_encoded_once(tmp_path: Path) -> None:
    first, second = ColourEncoder(), ColourEncoder()
    assert colours(tmp_path, first) == colours(tmp_path, second) == expected(range(EPISODES))
    assert (len(first.encoded), second.encoded) == (EPISODES * STEPS, [])
    assert not list(tmp_path.rglob("*.partial"))


def test_only_the_frames_that_are_needed_are_encoded_and_more_are_added_to_them(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    assert colours(tmp_path, encoder, [1, 4]) == expected([1, 4])
    assert encoder.encoded == [*range(10, 15), *range(40, 45)]
    encoder.encoded.clear()
    assert colours(tmp_path, encoder, [0, 1, 4]) == expected([0, 1, 4])
    assert encoder.encoded == list(range(5)), "those that are there are kept"


class Rank(ColourEncoder):
    """One of two ranks that encode the same frames, with what it does at its first image and after each."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__()
        self._folder, self._rank = folder, rank
        self.at_first: Callable[[], object] = lambda: None
        self.has_done_five_episodes = threading.Event()

    def encode(self, frames: np.ndarray) -> np.ndarray:
        if not self.encoded:
            self.at_first()
        codes = super().encode(frames)
        if len(self.encoded) == 5 * STEPS:
            self.has_done_five_episodes.set()
        return codes

    def run(self) -> None:
        store, dataset = opened(self._folder)
        episodes, done = dataset.table.all(), list[tuple[int, int]]()
        store.encode(
            dataset,
            episodes,
            "front",
            self,
            first_id=4,
            rank=self._rank,
            world_size=2,
            progress=lambda *told: done.append(told),
        )
        assert done[-1] == (EPISODES * STEPS, EPISODES * STEPS)

    @property
    def episodes(self) -> list[int]:
        return [colour // 10 for colour in self.encoded[::STEPS]]


def test_each_rank_begins_with_its_own_shards_and_leaves_to_others_what_they_are_at(tmp_path: Path) -> None:
    first, second = Rank(tmp_path, 0), Rank(tmp_path, 1)
    thread = threading.Thread(target=second.run)

    def while_the_second_does_the_rest() -> None:
        thread.start()
        assert second.has_done_five_episodes.wait(60)

    first.at_first = while_the_second_does_the_rest
    first.run()
    thread.join()
    assert first.episodes == [0, 1]
    assert second.episodes == [2, 3, 6, 4, 5], "its own shards, 1 and 3, then 2"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[:-100],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "text": lambda whole: b"not an Arrow file",
    "one bit": lambda whole: whole[:400] + bytes([whole[400] ^ 1]) + whole[401:],
    "without its digest": lambda whole: whole[:-32],
    "of other columns": lambda whole: _arrow(pa.schema([("codes", pa.int32())])),
}


def _arrow(schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema):
        pass
    content = sink.getvalue().to_pybytes()
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_encoded_anew_and_the_others_are_not(tmp_path: Path, damage: str) -> None:
    colours(tmp_path, ColourEncoder())
    broken = shards(tmp_path)[1]
    broken.write_bytes(DAMAGE[damage](broken.read_bytes()))
    encoder = ColourEncoder()
    assert colours(tmp_path, encoder) == expected(range(EPISODES))
    assert encoder.encoded == [*range(20, 25), *range(30, 35)]


@pytest.mark.parametrize("file", ["numbers.arrow", "episodes.arrow"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_read_from_the_dataset_anew(tmp_path: Path, file: str, damage: str) -> None:
    opened(tmp_path)
    (broken,) = (tmp_path / "episodes").glob(f"*/{file}")
    broken.write_bytes(DAMAGE[damage](broken.read_bytes()))
    source = Source()
    _, dataset = opened(tmp_path, source)
    assert source.reads == 1
    assert dataset.table.episode(3).actions[0].tolist() == [30, -30]


def test_a_shard_of_another_place_is_not_read(tmp_path: Path) -> None:
    colours(tmp_path, ColourEncoder())
    first, second, *_ = shards(tmp_path)
    second.write_bytes(first.read_bytes())
    assert colours(tmp_path, ColourEncoder()) == expected(range(EPISODES))


def test_a_shard_and_a_table_of_another_dataset_are_not_read(tmp_path: Path) -> None:
    """As if somebody had copied them to the wrong folder: they are whole, and of the same geometry."""
    colours(tmp_path, ColourEncoder())
    other, dataset = opened(tmp_path, Source(content="b"))
    other.encode(dataset, dataset.table.all(), "wrist", ColourEncoder(), first_id=4)
    own, foreign = sorted({file.parent for file in shards(tmp_path)}, key=lambda folder: folder.stat().st_mtime)
    for file in own.glob("*.arrow"):
        file.write_bytes((foreign / file.name).read_bytes())
    tables = {folder.parent.name: folder.parent for folder in (tmp_path / "episodes").glob("*/episodes.arrow")}
    mine, theirs = tables[opened(tmp_path)[1].key], tables[dataset.key]
    for name in ("numbers.arrow", "episodes.arrow"):
        (mine / name).write_bytes((theirs / name).read_bytes())
    source, encoder = Source(), ColourEncoder()
    opened(tmp_path, source)
    assert source.reads == 1
    assert colours(tmp_path, encoder) == expected(range(EPISODES))
    assert len(encoder.encoded) == EPISODES * STEPS


def test_a_dataset_that_changes_while_its_episodes_are_read_leaves_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="changed while it was read"):
        opened(tmp_path, Source(), reopen=lambda: Source(content="b"))
    source = Source()
    opened(tmp_path, source)
    assert source.reads == 1, "nothing is kept of what was read then"


def test_other_content_settings_and_tokenizers_have_files_of_their_own(tmp_path: Path) -> None:
    keys = {opened(tmp_path, Source(content=content), settings=s)[1].key for content in "ab" for s in ("", "no-ops")}
    assert len(keys) == 4


def test_a_dataset_that_changes_while_it_is_encoded_leaves_no_shard(tmp_path: Path) -> None:
    now = Source()
    store, dataset = opened(tmp_path, Source(), reopen=lambda: now)
    now.content = "b"
    with pytest.raises(DataError, match=r"^source: changed while it was read; start again once nobody writes to it$"):
        store.encode(dataset, dataset.table.all(), "front", ColourEncoder(), first_id=4)
    assert not shards(tmp_path)


def test_episodes_that_cannot_be_read_are_an_error_or_left_out_and_listed(tmp_path: Path) -> None:
    source = Source(bad={2: "damaged", 5: "no video"})
    with pytest.raises(DataError, match=r"^source: episode 2: damaged$"):
        opened(tmp_path, source)
    _, dataset = opened(tmp_path, source, skip_bad=True)
    assert dataset.table.problems == {2: "source: episode 2: damaged", 5: "source: episode 5: no video"}
    assert [dataset.table.lengths[position] for position in (1, 2, 3)] == [STEPS, 0, STEPS]


def test_what_is_remembered_of_a_dataset_is_computed_once_and_not_believed_if_it_is_damaged(tmp_path: Path) -> None:
    store, dataset = opened(tmp_path)
    assert store.remembered(dataset.key, "mean", lambda: [1.5, None]) == [1.5, None]
    assert store.remembered(dataset.key, "mean", lambda: 2) == [1.5, None]
    assert store.remembered(dataset.key, "median", lambda: 3) == 3
    (file,) = (f for f in (tmp_path / "episodes").rglob("*.json") if json.loads(f.read_text())["name"] == "mean")
    file.write_text(file.read_text().replace("1.5", "1.6"))
    assert store.remembered(dataset.key, "mean", lambda: 2) == 2


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"prepared data cannot be written \(.+\); free space or") as told:
        opened(tmp_path / "store")
    assert "\n" not in str(told.value)


def test_a_disk_that_fills_up_while_codes_are_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails in the same way."""
    store, dataset = opened(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(DataError, match=r"prepared data cannot be written \(File too large\)"):
            store.encode(dataset, dataset.table.all(), "front", ColourEncoder(), first_id=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not shards(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import ColourEncoder, EPISODES, STEPS, opened
from vlatrack.data.store import episode_table
episode_table.SHARD_STEPS = 2 * STEPS

class Killed(ColourEncoder):
    def encode(self, frames):
        if len(self.encoded) > 2 * STEPS:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(frames)

store, dataset = opened(Path(sys.argv[1]))
store.encode(dataset, dataset.table.all(), "front", Killed(), first_id=4)
"""


def test_encoding_goes_on_after_a_kill_with_what_is_whole(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path, Path(__file__).parent], check=False)
    assert ended.returncode == -signal.SIGKILL
    encoder = ColourEncoder()
    assert colours(tmp_path, encoder) == expected(range(EPISODES))
    assert encoder.encoded == list(chain(*expected(range(2, EPISODES)))), "the first shard was whole"


def _partial(folder: Path, name: str, *, changed: float) -> Path:
    file = folder / f"{name}.17.partial"
    file.write_text("half")
    os.utime(file, (changed, changed))
    return file


def _write(folder: Path, name: str = "new") -> Path:
    schema = pa.schema([("numbers", pa.int64())])
    write_verified(folder / f"{name}.arrow", schema, [pa.record_batch([pa.array([1])], schema=schema)])
    return folder / f"{name}.arrow"


def test_what_killed_runs_left_unfinished_is_removed_and_what_is_being_written_stays(tmp_path: Path) -> None:
    host, a_minute_ago = socket.gethostname(), time.time() - 60
    killed = _partial(tmp_path, f"a.{host}", changed=a_minute_ago)
    written = _partial(tmp_path, f"b.{host}", changed=0)  # the pid of another container
    elsewhere = _partial(tmp_path, "c.elsewhere", changed=a_minute_ago)
    new = _partial(tmp_path, f"d.{host}", changed=time.time())
    abandoned = _partial(tmp_path, "e", changed=0)
    with written.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        _write(tmp_path)
    assert set(tmp_path.glob("*.partial")) == {written, elsewhere, new}
    assert not killed.exists()
    assert not abandoned.exists()


def test_a_file_that_another_run_finishes_meanwhile_does_no_harm(tmp_path: Path, monkeypatch) -> None:
    gone = tmp_path / f"a.{socket.gethostname()}.17.partial"
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([gone]))
    assert _write(tmp_path).exists()


def test_where_there_are_no_locks_the_age_of_a_file_tells_whether_it_is_abandoned(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    written = _partial(tmp_path, f"a.{socket.gethostname()}", changed=time.time() - 60)
    _partial(tmp_path, f"b.{socket.gethostname()}", changed=0)
    _write(tmp_path)
    assert list(tmp_path.glob("*.partial")) == [written]
    assert colours(tmp_path / "store", ColourEncoder()) == expected(range(EPISODES))


def test_two_writers_of_the_same_pid_and_host_name_do_not_share_a_file(tmp_path: Path) -> None:
    """As in two containers: the second writes the same file while the first is at it."""
    schema = pa.schema([("numbers", pa.int64())])
    written: list[Path] = []

    def batches() -> Iterator[pa.RecordBatch]:
        _write(tmp_path)
        written.extend(tmp_path.glob("*.partial"))
        yield pa.record_batch([pa.array([2])], schema=schema)

    write_verified(tmp_path / "new.arrow", schema, batches())
    assert len(written) == 1, "the file of the first is still there when the second has finished"
    assert [file.name for file in tmp_path.iterdir()] == ["new.arrow"]


def test_what_another_user_left_unfinished_does_no_harm(tmp_path: Path, monkeypatch) -> None:
    left = _partial(tmp_path, f"a.{socket.gethostname()}", changed=0)

    def refuse(file: Path, *rest: int) -> int:
        if file == left:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return os_open(file, *rest)

    os_open = os.open
    monkeypatch.setattr(os, "open", refuse)  # file permissions refuse nothing to root
    _write(tmp_path)
    assert left.exists()


def _aged(file: Path, content: str, *, seconds: float = 60) -> Path:
    """A file that was written some time ago, as far as its times tell."""
    file.write_text(content)
    os.utime(file, (time.time() - seconds,) * 2)
    return file


def test_a_file_is_hashed_again_only_if_somebody_has_touched_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlatrack.data.digests._UNTIL_SETTLED_NS", -1)
    file, hashed = _aged(tmp_path / "data", "one"), list[str]()

    def digest() -> str:
        memory = DigestMemory(tmp_path / "memory.json")
        found = memory.digest_of(file, lambda: hashed.append(file.read_text()) or f"of {file.read_text()}")
        memory.save()
        return found

    assert [digest(), digest()] == ["of one"] * 2
    assert hashed == ["one"]
    _aged(file, "two")
    assert (digest(), hashed) == ("of two", ["one", "two"])
    with hashing_all_files():
        assert [digest(), digest()] == ["of two"] * 2
        assert hashed == ["one", "two", "two"], "once, not as often as somebody asks"
    (tmp_path / "memory.json").write_text('{"half')
    assert (digest(), hashed[3:]) == ("of two", ["two"])


def test_a_file_that_may_change_within_a_tick_of_the_clock_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "data"
    for content in ("one", "two"):  # of the same size, perhaps within the same tick
        file.write_text(content)
        memory = DigestMemory(tmp_path / "memory.json")
        assert memory.digest_of(file, file.read_text) == content
        memory.save()


def test_fingerprints_do_not_depend_on_what_is_remembered(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlatrack.data.digests._UNTIL_SETTLED_NS", -1)
    files = [_aged(tmp_path / name, name) for name in ("b", "a")]
    first = digests_of(tmp_path, files)
    assert first == digests_of(tmp_path, files)
    assert list(first) == ["a", "b"]
    lines = "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in "ab")
    assert content_fingerprint(first) == hashlib.sha256(lines.encode()).hexdigest()
