"""Keeps secrets out of everything that is written or shown, and strangers out of the files of a run."""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.tracking.secret_shapes import (
    HIDDEN,
    KNOWN_VARIABLES,
    SECRET_VARIABLE,
    URL_PASSWORD,
    hide_shapes,
    names_secret,
)
from vlatrack.tracking.sharing import is_shared, share_directory, share_file, umask_for

_SHORTEST_SECRET = 8
"""Shorter values (`1`, `true`) occur everywhere and are no secrets, except in variables that hold nothing else."""
_SHORTEST_WORD = 3
_PLAIN_WORD = re.compile(r"[0-9.]+|true|false|null|none", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without the keys, tokens and passwords of the environment and without what looks like one: logins in
    addresses, signatures, well-known tokens.

    The text may be JSON, in which a password looks different.
    """
    for secret in sorted(_secrets().values(), key=len, reverse=True):  # one may begin with another
        for spelling in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            text = text.replace(spelling, HIDDEN)
    for word in _short_secrets():
        text = re.sub(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", HIDDEN, text)
    return hide_shapes(text)


def secret_within(text: str) -> str | None:
    """The name of an environment variable whose secret value stands in the text."""
    return next((name for name, value in _secrets().items() if value in text), None)


def _secrets() -> dict[str, str]:
    named = {name: value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    # GOOGLE_APPLICATION_CREDENTIALS is the path of a file.
    return {n: v for n, v in named.items() if len(v) >= _SHORTEST_SECRET and not (v[0] == "/" and "CRED" in n.upper())}


def _short_secrets() -> list[str]:
    """Hidden as whole words only, so that the rest of a text stays."""
    known = [os.environ.get(name, "") for name in KNOWN_VARIABLES]
    return [v for v in known if _SHORTEST_WORD <= len(v) < _SHORTEST_SECRET and not _PLAIN_WORD.fullmatch(v)]


def redact_param(name: str, value: str) -> str:
    """`redact`, and nothing at all of a value whose name says that it is a secret, also inside of JSON."""
    if value and names_secret(name):
        return HIDDEN
    if value.startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):  # it is no JSON after all
            content = json.loads(value)
            hidden = _without_named_secrets(content)
            value = value if hidden == content else json.dumps(hidden)
    return redact(value)


def _without_named_secrets(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            name: HIDDEN if value and names_secret(name) else _without_named_secrets(value)
            for name, value in content.items()
        }
    return [_without_named_secrets(item) for item in content] if isinstance(content, list) else content


def has_password(uri: str) -> bool:
    """Whether an address carries a user's password."""
    return URL_PASSWORD.search(uri) is not None


_usual_umasks: list[int] = []


@contextlib.contextmanager
def private_files(of: Path | None = None) -> Iterator[None]:
    """What this process writes meanwhile, by whatever library, is for those who may read the run `of`, or the next new
    one, see `sharing.py`: mostly this user alone. Its threads share that."""
    _usual_umasks.append(os.umask(umask_for(of)))
    try:
        yield
    finally:
        os.umask(_usual_umasks.pop())


@contextlib.contextmanager
def shareable_files() -> Iterator[None]:
    """Within `private_files`: who may read what is written meanwhile is the user's choice again."""
    if not _usual_umasks:
        yield
        return
    private = os.umask(_usual_umasks[-1])
    try:
        yield
    finally:
        os.umask(private)


def private_directory(path: Path, *, within: Path | None = None) -> Path:
    """Create the directory and its missing parents for this user alone (0700), in a shared run for the group to read
    (0750); `within` is one of these that is not to be created, so that a folder which was moved away does not come
    back. FileNotFoundError if it is missing."""
    for directory in (*reversed(path.parents), path):
        if (within is None or (directory != within and directory.is_relative_to(within))) and not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
            if is_shared(directory):
                share_directory(directory)
    return path


def open_private(path: Path, flags: int) -> int:
    """`os.open` of a file of a run; one that it creates is for this user alone (0600), in a shared run for the group to
    read (0640).

    Raises TrackerError for what is no regular file: in a folder that somebody else made, a symbolic link may lead to
    any file of this user, and a pipe never answers. OSError if the disk refuses.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(path)
    if flags & os.O_CREAT and is_shared(path):
        share_file(fd)
    return fd


def check_no_links(folder: Path) -> None:
    """Raise TrackerError if something in the folder, which only holds files that a run wrote itself, is a symbolic
    link; OSError if it cannot be read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise _no_file(Path(entry.path))


def _no_file(path: Path) -> TrackerError:
    what = "a symbolic link" if path.is_symlink() else "no regular file"
    return TrackerError(f"{path}: {what}, which no run writes there; remove it")


def write_private(path: Path, text: str) -> None:
    """Replace the file in one step, with the mode of `open_private`: readers see the old text or the new."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)  # of an earlier process that had this id, and was killed
    fd = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
