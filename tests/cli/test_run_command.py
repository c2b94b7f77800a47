"""`vlatrack run`, in this process."""

import json
import sys
from pathlib import Path

import pytest
from program import TOY

from vlatrack.cli.main import main
from vlatrack.data.digests import digests_of


@pytest.mark.parametrize(("words", "hashed"), [((), False), (("--verify",), True)])
@pytest.mark.parametrize("resumes", [False, True])
def test_verify_believes_no_digest_that_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], hashed: bool, resumes: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vlatrack.data.digests._UNTIL_SETTLED_NS", -1)
    file = tmp_path / "episodes.parquet"
    file.write_text("one")
    found = [digests_of(tmp_path, [file])]
    (memory,) = (tmp_path / "cache" / "vlatrack" / "digests").glob("*.json")
    ((name, remembered),) = json.loads(memory.read_text()).items()
    memory.write_text(json.dumps({name: [*remembered[:-1], "of what stood there before bits rotted"]}))
    start = "resume_run" if resumes else "run_experiment"
    monkeypatch.setattr(f"vlatrack.runner.run.{start}", lambda *_, **__: found.append(digests_of(tmp_path, [file])))
    what = ["--resume", str(tmp_path)] if resumes else [str(TOY)]
    monkeypatch.setattr(sys, "argv", ["vlatrack", "run", *what, "--runs", str(tmp_path / "runs"), *words])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code in (0, None)
    assert (found[0] == found[1]) == hashed
