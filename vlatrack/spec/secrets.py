"""Finds secrets in a spec, which is copied to run directories and trackers."""

import re

from vlatrack.spec.yaml_tree import Problem, Tree

VOCABULARY = "bos eos pad unk sep cls mask special image img frame text action state start end stop begin per"
"""Words before `token` that make it a language model's: `eos_token` is not a secret, `hf_token` is."""

_TOKEN = "".join(f"(?<!^{word}[_-])(?<![^a-z0-9]{word}[_-])" for word in VOCABULARY.split()) + "token"
_SECRET = f"(?i)(api_?key|{_TOKEN}|secret|password|passwd|passphrase|credentials?)"
SECRET_KEY = re.compile(rf"{_SECRET}$")
SECRET_ASSIGNED = re.compile(rf"{_SECRET}['\"]?\s*[:=]")
URL_WITH_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s]+@|https?://[^/\s@]+@")


def find_secrets(tree: Tree) -> list[Problem]:
    """A problem for each key that names a secret and each URL that contains one, without its value."""
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
    """Whether `text`, as typed by a user, may contain a secret and must not be shown."""
    return bool(SECRET_ASSIGNED.search(text) or URL_WITH_PASSWORD.search(text))
