"""One item of a run cannot be delivered, or not soon; the others must not wait for it."""

from fault_proxy import Fault
from mlflow_server import wait_until
from scene import Moments, Strike
from storm_rig import StormRun

from scenes.processes import delivery_killed
from vlatrack.tracking.journal.records import finish_record


def files_refused(status: int) -> Strike:
    """From a random moment until the trainer has ended, a proxy before MLflow answers uploads with this status."""

    def strike(run: StormRun, at: Moments) -> None:
        run.expected_status = "FINISHED"
        at.pause(4)
        run.rig.to_mlflow.choose = lambda method, path: Fault("status", status) if method == "PUT" else None
        run.await_trainer()
        run.blocked = run.number_behind()
        run.rig.calm()
        if status == 413:  # which is final, unless somebody says that the server takes more now
            run.await_complete()
            run.sync("--audit", "--repair").wait()

    return strike


def slow_upload(run: StormRun, at: Moments) -> None:
    """The network is slow for one file, and for nothing else; all else is there before it."""
    run.expected_status = "FINISHED"
    rate = int(at.rng.uniform(80_000, 150_000))
    run.rig.to_mlflow.choose = lambda method, path: Fault("throttle", bytes_per_s=rate) if method == "PUT" else None
    wait_until(lambda: finish_record(run.files.journal) is not None or run.has_ended(), "the run ends", 120)
    mlflow = run.trackers[0]
    wait_until(
        lambda: run.number_behind() == 0 or mlflow(run.files, run.uid).has_note, "all but the file is there", 120
    )
    run.blocked = run.number_behind()
    run.await_complete()


def poison(run: StormRun, at: Moments) -> None:
    """What no tracker expects, see the trainer's mode `poison`, while delivery is killed."""
    run.expected_status = "FINISHED"
    delivery_killed(run, at)
