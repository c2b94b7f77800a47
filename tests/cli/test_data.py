"""`vlatrack data`, in this process."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlatrack.cli.data import _progress_bars, app
from vlatrack.cli.main import app as program
from vlatrack.envs.record import TaskProgress
from vlatrack.errors import DataError, SpecError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "data" / "fixtures"
LIBERO = FIXTURES / "libero-hdf5"


def output_of(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_shows_tasks_cameras_ranges_size_and_fingerprint() -> None:
    from vlatrack.data.formats.lerobot.dataset import LeRobotDataset

    lines = output_of("info", FIXTURES / "lerobot-v3-video").splitlines()
    told = "\n".join(lines)
    assert "3, 288 steps, 4 s" in told
    assert "observation.images.corner2 (128 x 128)" in told
    assert "4 / 4 numbers" in told
    assert LeRobotDataset(FIXTURES / "lerobot-v3-video").fingerprint() in told
    rows = [" ".join(line.split()) for line in lines]
    assert "open the drawer 3 288 95 97" in rows
    assert any(row.startswith("1 dy -1 -1 -0.1459 0.5133 0.5141 ") for row in rows)
    assert any(row.startswith("lengths 95 |") and row.endswith("| 97 steps, median 96") for row in rows)
    assert any(row.startswith("3 gripper -1 -1 -1 -1 -1 always the same") for row in rows)


def test_info_as_json_has_lengths_tasks_and_statistics() -> None:
    told = json.loads(output_of("info", FIXTURES / "lerobot-v3-video", "--json"))
    assert told["lengths"] == [97, 96, 95]
    assert told["tasks"] == {"open the drawer": {"episodes": 3, "steps": 288}}
    dy = told["action"][1]
    assert (dy["name"], dy["min"], round(dy["quantiles"]["0.99"], 4)) == ("1 dy", -1.0, 0.5133)


@pytest.mark.slow
def test_info_draws_a_contact_sheet_and_histograms(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    output_of("info", FIXTURES / "lerobot-v3-video", "--pictures")
    with Image.open(tmp_path / "lerobot-v3-video-frames.png") as sheet:
        assert sheet.width > 1000, "seven moments beside each other"
        colours = np.unique(np.asarray(sheet.convert("RGB"))[::4, ::4].reshape(-1, 3), axis=0)
        assert len(colours) > 1000, "there are photographs on it"
    with Image.open(tmp_path / "lerobot-v3-video-actions.png") as histograms:
        assert histograms.width > 1000


def test_a_picture_that_could_not_be_written_is_told_before_anything_is_read() -> None:
    with pytest.raises(DataError, match=r"frames\.gif: unknown kind of picture; end its name in \.png"):
        output_of("info", LIBERO, "--contact-sheet", "frames.gif")
    with pytest.raises(DataError, match=r"no folder nowhere; make it first"):
        output_of("info", LIBERO, "--histograms", "nowhere/a.png")


def test_info_reads_libero_folders_too() -> None:
    told = output_of("info", LIBERO)
    assert "put the cream cheese in the bowl" in told
    assert "agentview_rgb (64 x 64), eye_in_hand_rgb (64 x 64)" in told
    assert "7 / 8 numbers" in told


def test_info_shows_a_task_that_looks_like_markup_as_it_is(tmp_path: Path) -> None:
    task, folder = "pick [/b] [red]:up:", tmp_path / "demos"
    shutil.copytree(LIBERO, folder)
    (path,) = folder.glob("*.hdf5")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": task})
    assert task in output_of("info", folder)


def test_the_progress_of_a_recording_shows_a_task_that_looks_like_markup_as_it_is(capsys) -> None:
    task = "pick [/b] [red]:up:"
    with _progress_bars() as show:
        show(TaskProgress(task, wanted=1, episodes=1, attempts=1, frames=5))
    assert task in capsys.readouterr().out


def test_info_of_something_else_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no meta/info\.json in it"):
        output_of("info", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        output_of("info", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot be read .File name too long.; give the folder of a dataset"):
        output_of("info", tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("window-opn-v3",), "did you mean 'window-open-v3'"),
        (("window-open-v3:many",), "'window-open-v3:many': expected a number of episodes after the colon"),
        (("window-open-v3:0",), "expected a number of episodes after the colon, such as window-open-v3:5"),
        (("window-open-v3", "window-open-v3:5"), "is listed twice"),
    ],
)
def test_a_wrong_task_is_told_and_nothing_is_written(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        output_of("record", *words, "--output", tmp_path / "demos")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["goals", "=3", "a-b=3", "goals=[1"])
def test_a_wrong_option_of_an_environment_is_told(tmp_path: Path, option: str) -> None:
    with pytest.raises(SpecError, match="--env-option"):
        output_of("record", "reach", "--env-option", option, "--output", tmp_path / "demos")


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, told in (("file", "is not a LeRobot dataset"), ("file/demos", "cannot be written .Not a directory.")):
        with pytest.raises(DataError, match=told):
            output_of("record", "reach-v3", "--output", tmp_path / output)


@pytest.mark.parametrize(
    "command",
    [
        "data record",
        "data info",
        "data validate",
        "data convert",
        "data push",
        "data view",
        "import",
        "validate",
        "schema",
    ],
)
def test_help_has_an_example(command: str) -> None:
    told = CliRunner().invoke(program, [*command.split(), "--help"], env={"COLUMNS": "120"}).output
    assert f"Example: vlatrack {command} " in told


def test_help_of_record_has_every_option() -> None:
    told = output_of("record", "--help")
    names = ("episodes", "env", "env-option", "camera", "resolution", "seed", "action-noise", "output", "overwrite")
    assert [name for name in names if f"--{name}" not in told] == []
