"""Processes are killed, signalled, forked, and get into each other's way."""

import signal

from mlflow_server import wait_until
from scene import Moments, Strike
from storm_rig import StormRun
from storm_trainer import Training


def trainer_killed(run: StormRun, at: Moments) -> None:
    at.pause(5)
    run.kill_trainer()


def delivery_killed(run: StormRun, at: Moments) -> None:
    for _ in range(3):
        wait_until(lambda: run.delivery() is not None or run.has_ended(), "a delivery process")
        at.pause(6)
        run.kill_delivery()


def wandb_core_killed(run: StormRun, at: Moments) -> None:
    for _ in range(2):
        wait_until(lambda: run.kill_wandb_core() or run.has_ended(), "a wandb-core process")
        at.pause(4)


def signalled(number: signal.Signals, status: str) -> Strike:
    def strike(run: StormRun, at: Moments) -> None:
        at.pause(5)
        run.signal_trainer(number, status)

    return strike


def two_syncs(run: StormRun, at: Moments) -> None:
    """Trainer and delivery are gone; of two syncs that start together, one may be killed."""
    at.pause(5)
    run.kill_trainer()
    run.kill_delivery()
    both = [run.sync(), run.sync()]
    at.pause(4)
    if at.rng.random() < 0.5:
        at.rng.choice(both).kill()
    for process in both:
        process.wait()


def resumed_from_earlier_steps(run: StormRun, at: Moments) -> None:
    """Training is killed and continued twice from a step that it had passed, while delivery is killed as well."""
    for _ in range(2):
        at.pause(3)
        run.kill_trainer()
        if at.rng.random() < 0.5:
            run.kill_delivery()
        run.train(Training(steps=300, first=at.rng.randrange(1, 100)))


def struck_all_the_time(run: StormRun, at: Moments) -> None:
    """Signals without end, while threads log and forked children come and go; see the trainer's mode `rough`."""
    assert run.trainer is not None, "train first"
    run.expected_status = "FINISHED"
    wait_until(lambda: run.has_begun() or run.has_ended(), "the run begins")
    while not run.has_ended():
        at.pause(0.1)
        run.trainer.send_signal(signal.SIGUSR2)
