"""The storms: each breaks something at random moments of a run, seeded, and lets the oracle judge what arrived."""

import signal

from scene import Scene
from storm_trainer import Training

from scenes.files import cursors_corrupt, cursors_deleted, cursors_stale, disk_full, torn_tail
from scenes.items import files_refused, poison, slow_upload
from scenes.losses import restored_from_a_backup, rows_gone
from scenes.places import copied, moved
from scenes.processes import (
    delivery_killed,
    resumed_from_earlier_steps,
    signalled,
    struck_all_the_time,
    trainer_killed,
    two_syncs,
    wandb_core_killed,
)
from scenes.servers import (
    answered_by_the_proxy,
    killed_after_the_remote_run_was_made,
    proxy_fault,
    server_killed,
    sqlite_locked,
    trackers_down,
)

SCENES = (
    Scene("trainer kill -9", trainer_killed),
    Scene("delivery process kill -9", delivery_killed),
    Scene("wandb-core kill -9", wandb_core_killed),
    Scene("MLflow server kill -9", server_killed),
    Scene("killed after the remote run was made", killed_after_the_remote_run_was_made),
    Scene("proxy: refuse", proxy_fault("refuse")),
    Scene("proxy: hang", proxy_fault("hang")),
    Scene("proxy: response cut", proxy_fault("cut")),
    Scene("proxy: slow", proxy_fault("slow")),
    *(Scene(f"proxy: {status}", proxy_fault("status", status)) for status in (401, 403, 404, 429, 500)),
    Scene("SQLite locked", sqlite_locked, local_mlflow=True),
    Scene("disk full", disk_full, local_mlflow=True, tmpfs=True),
    Scene("cursor deleted", cursors_deleted),
    Scene("cursor stale", cursors_stale),
    Scene("cursor corrupt", cursors_corrupt),
    Scene("torn tail", torn_tail),
    Scene("SIGTERM", signalled(signal.SIGTERM, "KILLED")),
    Scene("SIGINT", signalled(signal.SIGINT, "KILLED")),
    Scene("uncaught exception", signalled(signal.SIGUSR1, "FAILED")),
    Scene("two syncs at once", two_syncs),
    Scene("trackers down from start to end", trackers_down, Training(timeout_s=2)),
    Scene("resumed twice from earlier steps", resumed_from_earlier_steps),
    Scene("files refused (403)", files_refused(403), Training(timeout_s=15, file_at=599)),
    Scene("files refused (413), then repaired", files_refused(413), Training(timeout_s=15, file_at=599)),
    Scene("slow upload", slow_upload, Training(file_mb=3, file_at=100)),
    Scene("poison", poison, Training(mode="poison")),
    Scene("moved while training", moved, Training(timeout_s=5)),
    Scene("copied while training", copied),
    Scene("server restored from a backup", restored_from_a_backup),
    Scene("W&B rows gone", rows_gone),
    Scene("a proxy that answers {} to writes", answered_by_the_proxy),
    Scene("two W&B backends", delivery_killed, second_wandb=True),
    Scene("user without a name", delivery_killed, nameless=True),
    Scene("threads, signals and forks", struck_all_the_time, Training(mode="rough")),
)
