"""What a job would be refused for, found out before it waits in a queue; also on a machine that has no GPU."""

from collections.abc import Sequence
from pathlib import Path

from vlatrack.builders.closed_loop import deciding_sets, load_closed_loops
from vlatrack.builders.experiment import Experiment
from vlatrack.builders.training import check_ranks
from vlatrack.errors import SubmitError
from vlatrack.runner.run import check_same_experiment, check_settings, initial_policy, open_resumed
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.submission.resources import Resources
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.lock import lock_holder
from vlatrack.training.process_group import ProcessGroup


def check_new(spec: ExperimentSpec, resources: Resources) -> None:
    """Check an experiment with its data.

    Raises:
        VlatrackError: the run would not begin.
    """
    check_settings(spec, load_closed_loops(spec))
    check_ranks(spec, _Planned(resources))
    Experiment.new(spec, initial_policy(spec))


def check_resumed(run: Path, overrides: Sequence[str], resources: Resources) -> ExperimentSpec:
    """Check a run that is to go on, and return the settings that it will have.

    Raises:
        VlatrackError: it would not go on, is done, or is being written.
    """
    resumed = open_resumed(run, "last", overrides, None, writes=True)
    journal = resumed.directory.journal
    if is_being_written(journal):
        raise SubmitError(f"{run}: {lock_holder(journal) or 'a process'} trains it just now; wait for it or stop it")
    if resumed.nothing_left is not None:
        raise SubmitError(resumed.nothing_left)
    spec, closed_loops = resumed.spec, load_closed_loops(resumed.spec)
    check_settings(spec, closed_loops)
    check_ranks(spec, _Planned(resources))
    experiment = Experiment.of(resumed.stored, spec, store=resumed.directory.store)
    fingerprints = {**experiment.fingerprints, **deciding_sets(spec, closed_loops)}
    check_same_experiment(resumed.directory, resumed.stored, spec, fingerprints)
    return spec


class _Planned(ProcessGroup):
    """The processes that a job will have; none of them is here."""

    def __init__(self, resources: Resources) -> None:
        self.world_size = resources.world_size
        self.local_world_size = self.per_machine = resources.processes
