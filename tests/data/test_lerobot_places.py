"""Opening LeRobot datasets that are elsewhere: on the Hugging Face hub, and in remote folders."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import huggingface_hub
import huggingface_hub.constants
import pytest
from hub_datasets import HubDatasets, hub_datasets

from vlatrack.builders.data import open_dataset_of, open_source
from vlatrack.data import remote
from vlatrack.data.checks.scan import scan_dataset
from vlatrack.data.episodes import episodes_digest
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.lerobot.places import open_lerobot
from vlatrack.data.progress import telling
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError
from vlatrack.spec.data import LeRobotSource

DEMOS = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
TABLE = "data/chunk-000/file-000.parquet"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDatasets]:
    with hub_datasets() as double:
        hub_at(double.url, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield double
        huggingface_hub.close_session()  # its connections would be complained about in a later test


def hub_at(url: str, monkeypatch: pytest.MonkeyPatch, *, offline: bool = False) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)


def told(**place: str) -> str:
    with pytest.raises(DataError) as caught:
        open_lerobot(**place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dataset_of_the_hub_is_named_by_the_commit_that_its_branch_stood_for(hub: HubDatasets) -> None:
    commit = hub.push("lab/demos", DEMOS, "main", "v1")
    here = LeRobotDataset(DEMOS)
    dataset = open_source(LeRobotSource(repo="lab/demos"))
    assert dataset.name == f"lab/demos@{commit}"
    assert dataset.fingerprint() == here.fingerprint()
    assert episodes_digest(dataset.episodes()) == episodes_digest(here.episodes())
    served = len(hub.served)
    assert open_source(LeRobotSource(repo="lab/demos", revision="v1")).name == dataset.name
    assert open_source(LeRobotSource(repo="lab/demos", revision=commit)).name == dataset.name
    assert len(hub.served) == served, "a commit is downloaded once"


def test_a_branch_that_moved_is_read_where_it_is_now_and_a_tag_where_it_was(hub: HubDatasets, tmp_path: Path) -> None:
    before = hub.push("lab/demos", DEMOS, "main", "v1")
    changed = Path(shutil.copytree(DEMOS, tmp_path / "changed"))
    (changed / "meta/info.json").write_text((DEMOS / "meta/info.json").read_text().replace("80", "40"))
    after = hub.push("lab/demos", changed, "main")
    assert open_lerobot(repo="lab/demos").name == f"lab/demos@{after}"
    assert open_lerobot(repo="lab/demos", revision="v1").name == f"lab/demos@{before}"


def test_a_push_while_a_dataset_is_read_is_no_change_of_it(hub: HubDatasets, tmp_path: Path) -> None:
    commit = hub.push("lab/demos", DEMOS, "main")
    dataset = open_dataset_of(LeRobotSource(repo="lab/demos"), TokenStore(tmp_path / "store"))
    changed = Path(shutil.copytree(DEMOS, tmp_path / "changed"))
    (changed / "meta/info.json").write_text((DEMOS / "meta/info.json").read_text().replace("80", "40"))
    hub.push("lab/demos", changed, "main")
    dataset.check_unchanged()
    assert dataset.reopen is not None
    assert dataset.reopen().name == f"lab/demos@{commit}"


def test_without_a_network_what_is_here_is_read(hub: HubDatasets, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.push("lab/demos", DEMOS, "main")
    folder = open_lerobot(repo="lab/demos").root
    for offline in (True, False):
        hub_at("http://127.0.0.1:9", monkeypatch, offline=offline)
        assert open_lerobot(repo="lab/demos").name == f"lab/demos@{commit}"
    (folder / TABLE).unlink()
    assert told(repo="lab/demos") == (
        "lab/demos: only a part of it is here, and the hub cannot be reached; try again with a network"
    )
    assert "the hub cannot be reached (ConnectError) and no copy is here; check the network" in told(repo="lab/others")


class Told:
    """What is told of how far things have come."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, int, str]] = []

    def __call__(self, name: str, done: int, total: int, *, unit: str, details=(), is_brief: bool = False) -> None:
        self.lines.append((name, done, total, unit))

    def of(self, name: str) -> list[tuple[int, int]]:
        return [(done, total) for told, done, total, _ in self.lines if told == name]


def test_how_far_a_download_from_the_hub_has_come_is_told_and_its_own_bars_are_not_drawn(
    hub: HubDatasets, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.push("lab/demos", DEMOS, "main")
    told, files = Told(), sum(path.is_file() for path in DEMOS.rglob("*") if path.suffix != ".md")
    with telling(told):
        open_lerobot(repo="lab/demos")
    downloads = told.of("downloading lab/demos")
    assert downloads == sorted(downloads), "it never goes back"
    assert downloads[-1] == (files, files)
    assert capfd.readouterr() == ("", "")


def test_what_the_hub_does_not_give_is_told_with_the_remedy(hub: HubDatasets) -> None:
    hub.push("lab/demos", DEMOS, "main")
    hub.push("lab/secret", DEMOS, "main")
    hub.gated.add("lab/secret")
    assert "lab/none: the hub has no such dataset that this login may see; check the name" in told(repo="lab/none")
    assert "lab/secret: its owner has to grant access" in told(repo="lab/secret")
    assert "has no branch, tag or commit 'v9'" in told(repo="lab/demos", revision="v9")
    assert "has no branch, tag or commit '../../x'" in told(repo="lab/demos", revision="../../x")
    assert "give one of them" in told(repo="lab/demos", path="demos")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """A remote folder memory://bucket/demos."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(DEMOS), "/bucket/demos", recursive=True)
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


ADDRESS = "memory://bucket/demos"


def downloads_of(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are downloaded from now on."""
    downloaded: list[str] = []
    get_file = memory.get_file
    monkeypatch.setattr(
        type(memory),
        "get_file",
        lambda _, path, *rest, **more: downloaded.append(path) or get_file(path, *rest, **more),
    )
    return downloaded


def test_a_remote_folder_is_copied_once(folder: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_source(LeRobotSource(path=ADDRESS))
    assert dataset.name == ADDRESS
    assert dataset.fingerprint() == LeRobotDataset(DEMOS).fingerprint()
    downloaded = downloads_of(folder, monkeypatch)
    assert open_lerobot(ADDRESS).fingerprint() == dataset.fingerprint()
    assert downloaded == []


def test_what_changes_there_or_here_is_copied_again(
    folder: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = open_lerobot(ADDRESS).root
    downloaded = downloads_of(folder, monkeypatch)
    folder.pipe_file("/bucket/demos/meta/stats.json", b"{}")
    folder.rm("/bucket/demos/meta/tasks.parquet")
    folder.pipe_file("/bucket/demos/README.md", b"new")
    (root / TABLE).write_bytes((root / TABLE).read_bytes()[:-1])
    open_lerobot(ADDRESS)
    assert sorted(Path(path).name for path in downloaded) == ["README.md", "file-000.parquet", "stats.json"]
    assert (root / TABLE).read_bytes() == (DEMOS / TABLE).read_bytes()
    assert not (root / "meta/tasks.parquet").exists()
    assert not list(root.rglob("*.partial"))


def test_an_interrupted_copy_goes_on(folder: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    get_file = folder.get_file
    copied: list[str] = []

    def fail_late(_: object, path: str, target: str, **options: object) -> None:
        if path.endswith(".mp4"):
            Path(target).write_bytes(b"half")
            raise ConnectionResetError
        get_file(path, target, **options)

    monkeypatch.setattr(type(folder), "get_file", fail_late)
    assert told(path=ADDRESS) == f"{ADDRESS}: cannot be read (ConnectionResetError); check address, network and login"
    monkeypatch.setattr(
        type(folder), "get_file", lambda _, path, *rest, **more: copied.append(path) or get_file(path, *rest, **more)
    )
    assert open_lerobot(ADDRESS).fingerprint() == LeRobotDataset(DEMOS).fingerprint()
    assert 0 < len(copied) < 6
    assert not list(remote.copies_folder().rglob("*.partial"))


def test_a_file_that_changes_while_it_is_copied_is_told(
    folder: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(folder), "get_file", lambda _, path, target, **options: Path(target).write_bytes(b"short"))
    assert "it changes while it is copied" in told(path=ADDRESS)


def test_a_remote_folder_that_cannot_be_read_is_told_without_its_login(folder: fsspec.AbstractFileSystem) -> None:
    assert told(path="memory://user:hunter2@bucket/none?token=hunter2") == (
        "memory://bucket/none: no such folder, or none that this login may see; check the address"
    )
    assert "cannot be read" in told(path="nosuch://bucket/demos") or "not installed" in told(path="nosuch://bucket/x")


def test_names_that_would_leave_the_copy_are_refused(
    folder: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = {"/bucket/demos/../../../.bashrc": {"size": 1}}
    monkeypatch.setattr(type(folder), "find", lambda *_, **__: listing)
    assert "is not inside it; do not trust this folder" in told(path=ADDRESS)


def test_how_far_a_remote_folder_is_copied_hashed_and_read_is_told_once(folder: fsspec.AbstractFileSystem) -> None:
    told, files = Told(), sum(path.is_file() for path in DEMOS.rglob("*"))
    with telling(told):
        dataset = open_lerobot(ADDRESS)
        digests = dataset.file_digests()
        scan_dataset(dataset, skip_bad=False)
    assert told.of(f"downloading {ADDRESS}") == [(done, files) for done in range(1, files + 1)]
    assert told.of("hashing files") == [(done, len(digests)) for done in range(len(digests) + 1)]
    assert told.of(f"reading {ADDRESS}") == [(done, 3) for done in (1, 2, 3)]
    again = Told()
    with telling(again):
        open_lerobot(ADDRESS)
    assert not again.lines, "nothing has to be done"


@pytest.mark.slow
def test_s3_is_read_with_the_login_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        assert "cannot be read (NoCredentialsError)" in told(path="s3://robots/demos")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        fsspec.filesystem("s3").clear_instance_cache()
        s3 = fsspec.filesystem("s3")
        s3.mkdir("robots")
        s3.put(str(DEMOS), "robots/demos", recursive=True)
        dataset = open_lerobot("s3://robots/demos")
        assert (dataset.name, dataset.fingerprint()) == ("s3://robots/demos", LeRobotDataset(DEMOS).fingerprint())
        assert "no such folder" in told(path="s3://robots/none")
    finally:
        server.stop()
