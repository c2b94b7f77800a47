"""What people type from habit with other programs, and the command that they meant."""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMANDS = {
    "train": ("run",),
    "fit": ("run",),
    "start": ("run",),
    "resume": ("run", "--resume"),
    "eval": ("evaluate",),
    "test": ("evaluate",),
    "ls": ("status",),
    "list": ("status",),
    "ps": ("status",),
    "check": ("validate",),
    "init": ("new",),
    "create": ("new",),
    "example": ("new",),
    "sbatch": ("submit",),
}
"""Names that other programs have for a command of ours."""
_WITH_SETTINGS = (("run",), ("submit",), ("validate",), ("bench", "train"), ("bench", "act"), ("evaluate",))
_FILE_OPTIONS = ("-c", "--config", "--config-file", "--cfg", "--file", "--experiment", "--spec")
_OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "max_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "steps": "train.max_steps",
    "bs": "train.batch_size",
    "per_device_train_batch_size": "train.micro_batch",
}
_FIRST_BLOCKS = ("train.", "optim.", "loss.", "data.")
"""Where a key that stands in several blocks is most probably meant to be."""
_YAML = (".yaml", ".yml")


def correction(words: Sequence[str], options: Mapping[tuple[str, ...], Mapping[str, bool]]) -> str | None:
    """One line that says what is written how here, with the whole command; None for words that need none.

    Args:
        words: the command line without the program.
        options: of each command, such as ``("bench", "train")``: its options, and whether they take a value.
    """
    rest, said = list(words), list[str]()
    if rest and rest[0] in COMMANDS and (rest[0],) not in options:
        command = COMMANDS[rest[0]]
        said.append(f"vlatrack has no command {rest[0]}; this is vlatrack {' '.join(command)}")
        rest[:1] = command
    for named in _WITH_SETTINGS:
        if tuple(rest[: len(named)]) == named:
            rest = [*named, *_Settings(named, options[named], said).corrected(rest[len(named) :])]
    return f"{'; '.join(dict.fromkeys(said))}; write: vlatrack {shlex.join(rest)}" if said else None


class _Settings:
    """Corrects the words of a command that takes a YAML file and settings."""

    def __init__(self, command: tuple[str, ...], options: Mapping[str, bool], said: list[str]) -> None:
        self._command, self._options, self._said = command, options, said

    def corrected(self, words: Sequence[str]) -> list[str]:
        waiting, done = list(words), list[str]()
        while waiting:
            word = waiting.pop(0)
            name, equals, value = word.partition("=")
            if name == "--resume" and not equals and self._lacks_run(waiting):
                self._resume(waiting, done)
            elif name in self._options:
                done.append(word)
                if self._options[name] and not equals and waiting:
                    done.append(waiting.pop(0))
            elif name in _FILE_OPTIONS:
                self._said.append("the YAML file stands alone, without an option")
                done.insert(0, value if equals or not waiting else waiting.pop(0))
            elif name.startswith("--") and (path := _path_of(name[2:])) is not None:
                self._said.append("settings are written KEY=VALUE, without dashes")
                has_value = equals or (waiting and not waiting[0].startswith("--"))
                done.append(f"{path}={value if equals else waiting.pop(0) if has_value else 'true'}")
            elif word.startswith("+") and equals:
                self._said.append("settings are written KEY=VALUE, without +")
                done.append(word.lstrip("+"))
            elif _is_open(word):
                self._said.append("a value with spaces stands in quotes")
                while waiting and _is_open(word):
                    word = f"{word} {waiting.pop(0)}"
                done.append(word)
            elif waiting and not equals and "." in word and not Path(word).exists() and _path_of(word) == word:
                self._said.append("settings are written KEY=VALUE")
                done.append(f"{word}={waiting.pop(0)}")
            else:
                done.append(self._file(word) if not done else word)
        return self._without_file(done) if self._command == ("run",) else done

    def _without_file(self, words: list[str]) -> list[str]:
        """The words of `vlatrack run`, without a YAML file beside a run that has its own."""
        if not any(before == "--resume" and run != "auto" for before, run in itertools.pairwise(words)):
            return words
        left = [word for word in words if "=" in word or not word.endswith(_YAML)]
        if left != words:
            self._said.append("--resume RUN goes on with the run's own spec; --resume auto takes a file")
        return left

    def _lacks_run(self, waiting: Sequence[str]) -> bool:
        return self._command == ("run",) and (
            not waiting or waiting[0].startswith("--") or "=" in waiting[0] or waiting[0].endswith(_YAML)
        )

    def _resume(self, waiting: list[str], done: list[str]) -> None:
        """`--resume` with nothing, or with a YAML file: the run is not named, so it is the last one of that file."""
        files = [word for word in (*done, *waiting) if word.endswith(_YAML)]
        if files:
            self._said.append("--resume takes a run, or auto for the last unfinished one of this file")
            done.extend(["--resume", "auto"])
        else:
            self._said.append("--resume takes a run, or latest")
            done.extend(["--resume", "latest"])

    def _file(self, word: str) -> str:
        """`quickstart` is experiments/quickstart.yaml, if that is there."""
        found = Path("experiments") / f"{word}.yaml"
        if (
            self._command == ("evaluate",)
            or not re.fullmatch(r"[\w.-]+", word)
            or Path(word).exists()
            or not found.is_file()
        ):
            return word
        self._said.append(f"there is no file {word}")
        return str(found)


def _path_of(name: str) -> str | None:
    """The setting that is meant by `max-steps` or `train.max_steps`; None if there is no such."""
    from vlatrack.spec.structure import known_paths

    wanted = name.strip("-").replace("-", "_")
    if wanted in _OTHER_NAMES:
        return _OTHER_NAMES[wanted]
    found = list(dict.fromkeys(path for path in known_paths() if path == wanted or path.endswith(f".{wanted}")))
    for block in ("", *_FIRST_BLOCKS):
        for path in found:
            if path == wanted or (block and path.startswith(block)):
                return path
    return found[0] if found else None


def _is_open(word: str) -> bool:
    """Whether a setting's value has a bracket that the shell has cut off: `tracking.backends=[mlflow,`."""
    _, equals, value = word.partition("=")
    return bool(equals) and any(value.count(left) > value.count(right) for left, right in ("[]", "{}"))
