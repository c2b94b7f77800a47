"""A spec is copied into run folders and trackers, so a secret has no place in it."""

import re

from vlatrack.spec.yaml_tree import Problem, Tree

VOCABULARY = "bos eos pad unk sep cls mask special image img frame text action state start end stop begin per"
"""What stands before the word token where it is one of a language model: `eos_token` is no secret, `hf_token` is."""

_TOKEN = "".join(f"(?<!^{word}[_-])(?<![^a-z0-9]{word}[_-])" for word in VOCABULARY.split()) + "token"
_SECRET = f"(?i)(api_?key|{_TOKEN}|secret|password|passwd|passphrase|credentials?)"
SECRET_KEY = re.compile(rf"{_SECRET}$")
SECRET_ASSIGNED = re.compile(rf"{_SECRET}['\"]?\s*[:=]")
URL_WITH_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s]+@|https?://[^/\s@]+@")


def find_secrets(tree: Tree) -> list[Problem]:
    """Return a problem for each key that names a secret and each URL that carries one, without its value."""
    problems = []
    for path, value in tree.walk():
        if path and isinstance(path[-1], str) and SECRET_KEY.search(path[-1]):
            text = "a secret does not belong in an experiment; remove it and set an environment variable"
            problems.append(Problem(tree.place(path), path, text))
        elif isinstance(value, str) and URL_WITH_PASSWORD.search(value):
            text = "the address carries a login; remove it and set environment variables (see your tracker's manual)"
            problems.append(Problem(tree.place(path), path, text))
    return problems


def may_hold_secret(text: str) -> bool:
    """Tell whether `text`, as typed by a user, may hold a secret and must not be shown."""
    return bool(SECRET_ASSIGNED.search(text) or URL_WITH_PASSWORD.search(text))
