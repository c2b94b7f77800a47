"""Open a trained policy to act with."""

from pathlib import Path
from typing import Literal, Self

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy
from vlatrack.builders.training import build_accelerator
from vlatrack.inference.policy import ActingPolicy
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint


class Policy(ActingPolicy):
    """A trained policy: ``Policy.load("runs/goal/20260101-120000-ab12").act(observation)``."""

    @classmethod
    def load(
        cls, path: str | Path, *, checkpoint: str | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> Self:
        """The policy of a run, a checkpoint or an exported folder; needs neither its data nor pretrained weights.

        Args:
            checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.
            device: auto: a GPU if there is one.

        Raises:
            VlatrackError: there is no such policy, it is damaged, or there is no such device.
        """
        chosen, run = find_checkpoint(Path(path), checkpoint, default="best")
        verify_checkpoint(chosen, run, training=False)
        stored = StoredPolicy.open(chosen, {} if run is None else run.settings_at_start())
        train = stored.spec.train.model_copy(update={"device": device})
        spec = stored.spec.model_copy(update={"train": train})
        accelerator = build_accelerator(spec)
        experiment = Experiment.of(stored, spec, ())
        model = experiment.policy(accelerator.device)
        encoding = experiment.encoding(model.layout, stored.record.image_tokenizer, accelerator.device)
        name = chosen.name if run is None else f"{run.path.parent.name}/{run.run_id}@{chosen.name}"
        return cls(model, encoding, name=name, sha256=stored.record.policy_sha256)
