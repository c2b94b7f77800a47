"""Where the tracking of a run lies on the disk."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """The files below a run directory `<runs>/<experiment>/<run-id>` that tracking owns."""

    run_dir: Path

    @property
    def journal(self) -> Path:
        return self.run_dir / "journal.jsonl"

    @property
    def delivery(self) -> Path:
        """Cursors, dead letters and the log of the delivery process."""
        return self.run_dir / "delivery"

    @property
    def backends(self) -> Path:
        """What the delivery process is to serve; holds no secrets."""
        return self.delivery / "backends.json"

    @property
    def delivery_lock(self) -> Path:
        """Locked by the delivery process, whose id it holds."""
        return self.delivery / "deliver.lock"

    @property
    def delivery_log(self) -> Path:
        return self.delivery / "deliver.log"

    @property
    def runs(self) -> Path:
        """The folder that all runs share, with the MLflow store."""
        return self.run_dir.absolute().parent.parent
