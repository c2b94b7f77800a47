"""CONTRIBUTING.md, "Adding a dataset format", carried out on the format that it shows."""

from pathlib import Path

import numpy as np
import pytest
from program import TOY, Program
from recipes import code_of, module_of
from toy_source import ToySource

from vlatrack.data.episodes import EpisodeSource
from vlatrack.testing.dataset_contract import DatasetContract
from vlatrack.tracking.journal.history import metric_history

FORMAT = module_of("npz_folder.py")


def write_folder(folder: Path, *, shift: float = 0.0) -> None:
    """The toy's episodes as files of the new format."""
    folder.mkdir()
    source = ToySource(episodes=4, shift=shift)
    for episode in source.episodes():
        np.savez(
            folder / f"{episode.index:03d}.npz",
            task=episode.task,
            actions=episode.actions,
            states=episode.states,
            front=source.frames(episode, "front"),
        )


class TestNpzFolder(DatasetContract):
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        for name, shift in (("demos", 0.0), ("changed", 0.1)):
            write_folder(tmp_path / name, shift=shift)

    def open(self) -> EpisodeSource:
        return FORMAT.NpzFolder(path=str(self.folder / "demos"))

    def open_changed(self) -> EpisodeSource:
        return FORMAT.NpzFolder(path=str(self.folder / "changed"))


@pytest.mark.slow
def test_a_format_of_ones_own_is_trained_on(program: Program) -> None:
    (program.folder / "npz_folder.py").write_text(code_of("npz_folder.py"))
    write_folder(program.folder / "demos")
    source = "kind: custom, target: 'npz_folder:NpzFolder', options: {path: demos}, part:"
    splits = [
        f"data.train={{{source} all_but_last_tenth}}",
        f"data.val_ind={{{source} last_tenth}}",
        "data.val_ood=null",
    ]
    done = program.run("run", TOY, *splits, "train.max_steps=2", "tracking.log_every=1")
    assert done.returncode == 0, done.stderr
    assert len(metric_history(program.only_run() / "journal.jsonl")["train_closs"]) == 2
