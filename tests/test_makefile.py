"""The Makefile keeps the build of torch that was asked for; pip itself is a stand-in that writes down its calls."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = """\
#!/bin/sh
# Knows `-c` (the version of torch that is installed) and `-m pip ... install ...`; all else succeeds.
here=$(dirname "$0")
case "$1 $2" in
"-c "*) [ -e "$here/torch" ] && cat "$here/torch"; exit ;;
"-m pip") ;;
*) exit 0 ;;
esac
echo "$*" >> "$here/calls"
for word in "$@"; do
    case "$word" in
    torch) case "$8" in --force-reinstall) rm "$here/torch" ;; esac
           [ -e "$here/torch" ] || echo torch==2.13.0 > "$here/torch" ;;
    torch==9*) exit 1 ;;
    torch==*) echo "$word" > "$here/torch" ;;
    esac
done
"""


class Checkout:
    """A checkout whose .venv exists, with a stand-in for its Python."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / ".venv" / "bin"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.bin.mkdir(parents=True)
        (folder / ".venv" / "venv.stamp").touch()
        for program, text in (("python", PYTHON), ("vlatrack", "#!/bin/sh\n"), ("ruff", "#!/bin/sh\n")):
            (self.bin / program).write_text(text)
            (self.bin / program).chmod(0o755)
        (self.bin / "mypy").symlink_to("ruff")

    def make(self, *words: str) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if name not in ("TORCH", "VENV", "MAKEFLAGS")}
        command = ["make", *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=30
        )

    def calls(self) -> list[str]:
        """What pip was asked to install since the last look."""
        file = self.bin / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line.partition(" -c constraints.txt ")[2] for line in lines]

    def torch(self) -> str:
        return (self.bin / "torch").read_text().strip()

    def change(self, name: str) -> None:
        """Make a file newer than every stamp, whatever the resolution of the file system's clock."""
        newest = max(stamp.stat().st_mtime for stamp in (self.folder / ".venv").glob("*.stamp"))
        os.utime(self.folder / name, (newest + 1, newest + 1))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


RUN = "--no-build-isolation {} -e .[wandb]"
DEV = "--no-build-isolation -e .[wandb,tensorboard,scale,serve,submit,sweep,rlds,dev]"


def test_first_call_installs_the_pinned_torch_and_the_next_one_nothing(checkout: Checkout) -> None:
    assert checkout.make("quickstart").returncode == 0
    assert checkout.calls() == [RUN.format("torch")]
    assert checkout.make("quickstart").returncode == 0
    assert checkout.calls() == []


@pytest.mark.parametrize("target", ["quickstart", "test", "check"])
def test_another_torch_replaces_the_installed_one_and_the_same_one_does_not(checkout: Checkout, target: str) -> None:
    checkout.make(target)
    checkout.calls()
    done = checkout.make(target, "TORCH=torch==2.13.0+cpu")
    assert done.returncode == 0, done.stderr
    assert "installing torch==2.13.0+cpu into .venv" in done.stdout
    assert checkout.torch() == "torch==2.13.0+cpu"
    assert checkout.calls()[:2] == ["--force-reinstall --no-deps torch==2.13.0+cpu", RUN.format("torch==2.13.0+cpu")]
    assert checkout.make(target, "TORCH=torch==2.13.0+cpu").returncode == 0
    assert checkout.calls() == []
    assert checkout.make(target, "TORCH=torch").returncode == 0
    assert checkout.torch() == "torch==2.13.0"


def test_changed_dependencies_keep_the_installed_build_of_torch(checkout: Checkout) -> None:
    checkout.make("test", "TORCH=torch==2.13.0+cpu")
    checkout.calls()
    for name in ("pyproject.toml", "constraints.txt"):
        checkout.change(name)
        assert checkout.make("test").returncode == 0
        assert checkout.calls() == [RUN.format("torch==2.13.0+cpu"), DEV, "--no-deps openpi-client"]


def test_torch_of_an_environment_without_a_record_stays(checkout: Checkout) -> None:
    """An environment that an earlier Makefile made, or whose torch was installed by hand."""
    (checkout.bin / "torch").write_text("torch==2.13.0+cu126\n")
    checkout.make("quickstart")
    assert checkout.calls() == [RUN.format("torch==2.13.0+cu126")]


def test_torch_that_pip_cannot_install_is_asked_for_again(checkout: Checkout) -> None:
    checkout.make("quickstart")
    for _ in range(2):
        checkout.calls()
        assert checkout.make("quickstart", "TORCH=torch==9.0").returncode != 0
        assert checkout.calls() == ["--force-reinstall --no-deps torch==9.0"]
    assert checkout.make("quickstart").returncode == 0
    assert checkout.calls() == []


def test_pin_that_the_installed_torch_does_not_fit_is_told_with_the_remedy(checkout: Checkout) -> None:
    (checkout.bin / "torch").write_text("torch==9.0+cpu\n")
    done = checkout.make("quickstart")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "torch==9.0+cpu: make TORCH=... chooses another" in line
