"""Open a trained policy to act with."""

from pathlib import Path
from typing import Literal, Self

import torch

from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import StoredPolicy
from vlatrack.builders.training import build_accelerator
from vlatrack.data.recorded import Recorded
from vlatrack.errors import SpecError
from vlatrack.inference.policy import ActingPolicy
from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import store_parameters
from vlatrack.runner.card import name_of_place
from vlatrack.runner.directory import find_checkpoint, verify_checkpoint
from vlatrack.runner.hub import HubPolicy
from vlatrack.training.compilation import LENGTH_MULTIPLE, compile_blocks, missing_compiler

Dtype = Literal["bf16", "fp32"]


class Policy(ActingPolicy):
    """A trained policy: ``Policy.load("runs/goal/20260101-120000-ab12").act(observation)``."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        checkpoint: str | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Dtype | None = None,
        compile: bool = False,  # noqa: A002  # as torch calls it
        static_cache: bool = False,
    ) -> Self:
        """The policy of a run, a checkpoint, an exported folder or the Hugging Face hub; needs neither its data nor
        pretrained weights.

        Args:
            path: a path; or ``organisation/name`` or ``hub:organisation/name@revision``, at the hub.
            checkpoint: of a run: ``best``, ``last`` or the name of a checkpoint folder; None: the best.
            device: auto: a GPU if there is one.
            dtype: in which it computes; None: as its weights are stored.
            compile: compile the decoder layers at the first chunk, which takes a minute or more, and again for each
                other number of observations that are answered together.
            static_cache: keep keys and values of the tokens in memory that stays in its place; then chunks may not be
                asked for by several threads at once.

        Raises:
            VlatrackError: there is no such policy, it is damaged, or there is no such device or compiler.
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
        prepare(model, dtype=dtype, compiles=compile)
        encoding = experiment.encoding(model.layout, stored.record.image_tokenizer, accelerator.device)
        name = name_of_place(chosen) if at_hub is None else str(at_hub)
        recorded = Recorded(stored.record.image_sizes, **spec.data.as_recorded.model_dump())
        return cls(
            model,
            encoding,
            name=name,
            sha256=stored.record.policy_sha256,
            recorded=recorded,
            length_multiple=LENGTH_MULTIPLE if compile else 1,
            static_cache=static_cache,
        )


def prepare(model: VlaPolicy, *, dtype: Dtype | None, compiles: bool) -> None:
    """Let a policy compute in ``dtype``, and compile its layers when they are first called.

    Raises:
        SpecError: there is no compiler.
    """
    if dtype is not None:
        store_parameters(model, torch.bfloat16 if dtype == "bf16" else torch.float32)
    if compiles:
        if (missing := missing_compiler(model.centres.device)) is not None:
            raise SpecError(f"compile: needs {missing}, which is not on the path; install it, or leave it out")
        compile_blocks(model, setting="compile")
