"""Open a trained policy to act with."""

from pathlib import Path
from typing import Literal, Self

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy
from vlatrack.builders.training import build_accelerator
from vlatrack.data.recorded import Recorded
from vlatrack.inference.policy import ActingPolicy
from vlatrack.runner.card import name_of_place
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint
from vlatrack.runner.hub import HubPolicy


class Policy(ActingPolicy):
    """A trained policy: ``Policy.load("runs/goal/20260101-120000-ab12").act(observation)``."""

    @classmethod
    def load(
        cls, path: str | Path, *, checkpoint: str | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> Self:
        """The policy of a run, a checkpoint, an exported folder or the Hugging Face hub; needs neither its data nor
        pretrained weights.

        Args:
            path: a path; or ``organisation/name`` or ``hub:organisation/name@revision``, at the hub.
            checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.
            device: auto: a GPU if there is one.

        Raises:
            VlatrackError: there is no such policy, it is damaged, or there is no such device.
        """
        at_hub = HubPolicy.named_by(path)
        place = Path(path) if at_hub is None else at_hub.fetch()
        chosen, run = find_checkpoint(place, checkpoint, default="best")
        verify_checkpoint(chosen, run, training=False)
        stored = StoredPolicy.open(chosen, {} if run is None else run.settings_at_start())
        if at_hub is not None:
            at_hub.refuse_code(stored.spec)
        train = stored.spec.train.model_copy(update={"device": device})
        spec = stored.spec.model_copy(update={"train": train})
        accelerator = build_accelerator(spec)
        experiment = Experiment.of(stored, spec, ())
        model = experiment.policy(accelerator.device)
        encoding = experiment.encoding(model.layout, stored.record.image_tokenizer, accelerator.device)
        name = name_of_place(chosen) if at_hub is None else str(at_hub)
        recorded = Recorded(stored.record.image_sizes, **spec.data.recorded.model_dump())
        return cls(model, encoding, name=name, sha256=stored.record.policy_sha256, recorded=recorded)
