"""The newest start of a run is found from the end of its journal, and rewinds are counted from it."""

from pathlib import Path

import pytest

from vlatrack.tracking.journal.history import Rewinds, last_start
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.run import TrackedRun


@pytest.fixture
def journal(run_dir: Path) -> Journal:
    run_dir.mkdir(parents=True)
    return Journal.open(run_dir / "journal.jsonl", run="u1", writer="trainer")


def test_the_newest_start_is_found_behind_what_only_looks_like_one(journal: Journal) -> None:
    assert last_start(journal.path) is None
    for number in (1, 2):
        journal.append(Kind.START, {"tags": {"number": str(number)}})
    journal.append(Kind.EVENT, {"name": "odd", "data": {"kind": "start", "text": '"kind":"start"'}, "alert": False})
    journal.append(Kind.METRICS, {"train_closs": 1.0}, step=3)
    journal.close()
    found = last_start(journal.path)
    assert found is not None
    assert (found.seq, found.data["tags"]) == (1, {"number": "2"})


def test_only_a_step_before_the_last_logged_one_is_a_rewind(journal: Journal) -> None:
    journal.append(Kind.START, {"tags": {"vlatrack.rewound.1": "4-5", "vlatrack.commit": "abc"}})
    journal.append(Kind.METRICS, {"train_closs": 1.0}, step=8)
    journal.append(Kind.METRICS, {"evaluate/val_ind_closs": 1.0}, step=2)  # of a checkpoint, later than the training
    journal.append(Kind.METRICS, {"sim/arena/success": 1.0}, step=3)
    journal.close()
    kept = {"vlatrack.rewound.1": "4-5"}
    for step in (None, 8, 9):
        assert Rewinds.of(journal.path.parent, step) == Rewinds(kept, None)
    rewound = Rewinds.of(journal.path.parent, 6)
    assert rewound.tags == kept | {"vlatrack.rewound.2": "7-8"}
    assert rewound.new == {"number": 2, "from_step": 7, "to_step": 8}


def test_a_rollback_is_counted_among_the_rewinds_of_a_resumed_run(run_dir: Path) -> None:
    words = {"uid": "u1", "name": "n", "experiment": "e", "backends": [], "params": {}, "tags": {}}
    with TrackedRun.start(run_dir, **words) as run:
        run.log({"train_closs": 1.0}, step=8)
        run.rewind(6, 8)
        run.log({"train_closs": 1.0}, step=9)
    with TrackedRun.start(run_dir, **words, resume=True, resume_step=3) as run:
        run.event("odd", {"text": '"name":"rewound"'})
        assert last_start(run_dir / "journal.jsonl").data["tags"] == {
            "vlatrack.rewound.1": "6-8",
            "vlatrack.rewound.2": "4-9",
        }
        run.rewind(2, 3)
    assert Rewinds.of(run_dir, None).tags.keys() == {f"vlatrack.rewound.{number}" for number in (1, 2, 3)}
