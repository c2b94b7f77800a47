"""Keeps secrets out of everything that is written or shown, and strangers out of the files of a run."""

import errno
import json
import os
import re
import stat
from pathlib import Path

from vlatrack.errors import TrackerError

HIDDEN = "***"

_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|PASSWORD|PASSWD|SECRET)$", re.IGNORECASE)
_SECRET_PARAM = re.compile(r"(^|[._-])(api_?key|token|password|passwd|passphrase|secret|credentials?)$", re.IGNORECASE)
_VOCABULARY = "bos|eos|pad|unk|sep|cls|mask|special|image|img|frame|text|action|state|start|end|stop|begin|per"
_VOCABULARY_TOKEN = re.compile(rf"(^|[._-])({_VOCABULARY})[_-]token$", re.IGNORECASE)
"""A token of a language model's vocabulary: `eos_token` is no secret, `hf_token` is."""
_URI_PASSWORD = re.compile(
    r"(?<=://)[^/\s@\"]*:[^/\s\"]+(?=@)|(?<=https://)[^/\s@\"]+(?=@)|(?<=http://)[^/\s@\"]+(?=@)"
)
"""A password in an address, or what stands alone before the @ of a web address, such as a GitHub token."""
_SHORTEST_SECRET = 8
"""Shorter values (`1`, `true`) occur everywhere and are no secrets."""


def redact(text: str) -> str:
    """The text without the keys, tokens and passwords of the environment and without passwords in addresses.

    The text may be JSON, in which a password looks different.
    """
    for secret in sorted(_secrets().values(), key=len, reverse=True):  # one may begin with another
        for spelling in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}:
            text = text.replace(spelling, HIDDEN)
    return _URI_PASSWORD.sub(HIDDEN, text)


def secret_within(text: str) -> str | None:
    """The name of an environment variable whose secret value stands in the text."""
    return next((name for name, value in _secrets().items() if value in text), None)


def _secrets() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if _SECRET_VARIABLE.search(n) and len(v) >= _SHORTEST_SECRET}


def redact_param(name: str, value: str) -> str:
    """`redact`, and nothing at all of a value whose name says that it is a secret."""
    is_secret = _SECRET_PARAM.search(name) is not None and _VOCABULARY_TOKEN.search(name) is None
    return HIDDEN if value and is_secret else redact(value)


def has_password(uri: str) -> bool:
    """Whether an address carries a user's password."""
    return _URI_PASSWORD.search(uri) is not None


def private_directory(path: Path) -> Path:
    """Create the directory and its missing parents for this user alone (0700)."""
    for directory in (*reversed(path.parents), path):
        directory.mkdir(mode=0o700, exist_ok=True)
    return path


def open_private(path: Path, flags: int) -> int:
    """`os.open` of a file of a run; one that it creates is for this user alone (0600).

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
    """Replace the file in one step, for this user alone (0600): readers see the old text or the new."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)  # of an earlier process that had this id, and was killed
    fd = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
