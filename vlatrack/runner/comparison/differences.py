"""In which data and code runs differ; what is the same in all is left out."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlatrack.runner.comparison.recorded import RecordedManifest, RecordedRun, Repository

_FILE = re.compile(r"^diff --git a/.* b/(.*)$")


@dataclass(frozen=True)
class FactDifference:
    """Something about data or code in which runs differ; None where a run does not tell."""

    what: str
    values: tuple[str | None, ...]


def data_differences(runs: Sequence[RecordedRun]) -> list[FactDifference]:
    """Fingerprints of datasets, episodes, statistics and pretrained weights, shortened to 12 digits."""
    manifests = [run.manifest for run in runs]
    names = dict.fromkeys(name for manifest in manifests for name in manifest.fingerprints)
    facts = [_fact(name, [_short(manifest.fingerprints.get(name)) for manifest in manifests]) for name in names]
    facts.append(_fact("statistics", [statistics_digest(m) if m.statistics else None for m in manifests]))
    return [fact for fact in facts if fact is not None]


def code_differences(runs: Sequence[RecordedRun]) -> list[FactDifference]:
    """Versions, commits, uncommitted changes, packages, the machine."""
    told = [run.manifest for run in runs]
    facts: list[FactDifference | None] = [
        _fact("vlatrack", [m.vlatrack for m in told]),
        _fact("Python", [m.python for m in told]),
        _fact("container image", [m.image for m in told]),
        _fact("commit of the image", [m.image_commit for m in told]),
        _fact("processes", [str(m.processes) if m.format else None for m in told]),
    ]
    for name in dict.fromkeys(name for m in told for name in m.repositories):
        repositories = [m.repositories.get(name) for m in told]
        facts.append(_fact(f"commit of {name}", [None if r is None else r.commit[:12] for r in repositories]))
        facts.append(_fact(f"uncommitted in {name}", [summary(r) for r in repositories]))
    for name in _comparable_packages(told):
        versions = [m.packages.get(name, "not installed") if m.format else None for m in told]
        facts.append(_fact(f"package {name}", versions))
    for name in dict.fromkeys(name for m in told for name in m.environment):
        facts.append(_fact(f"${name}", [m.environment.get(name, "not set") if m.format > 1 else None for m in told]))
    for name in dict.fromkeys(name for m in told for name in m.hardware):
        facts.append(_fact(f"hardware: {name}", [m.hardware.get(name) for m in told]))
    return [fact for fact in facts if fact is not None]


def changed_lines(diff: str) -> dict[str, list[str]]:
    """The lines that a diff of git adds and removes, with their sign, by file."""
    lines: dict[str, list[str]] = {}
    file = "?"
    for line in diff.splitlines():
        if (found := _FILE.match(line)) is not None:
            file = found[1]
            lines.setdefault(file, [])
        elif line[:1] in ("+", "-") and not line.startswith(("+++ ", "--- ")):
            lines.setdefault(file, []).append(line)
    return lines


def line_differences(a: Repository | None, b: Repository | None) -> list[str]:
    """The uncommitted lines that only one of two states of a repository has: `file: + line`, a line each."""
    if a is None or b is None:
        return []
    told = []
    of_a, of_b = changed_lines(a.diff), changed_lines(b.diff)
    for file in dict.fromkeys([*of_a, *of_b]):
        lines_a, lines_b = of_a.get(file, []), of_b.get(file, [])
        told += [f"A  {file}: {line}" for line in lines_a if line not in lines_b]
        told += [f"B  {file}: {line}" for line in lines_b if line not in lines_a]
    for file in sorted({*a.untracked, *b.untracked}):
        if a.untracked.get(file) != b.untracked.get(file):
            told.append(f"{'A' if file in a.untracked else ' '}{'B' if file in b.untracked else ' '} {file}: untracked")
    return told


def summary(repository: Repository | None) -> str | None:
    """The uncommitted changes in a few words, with a digest by which different ones differ."""
    if repository is None:
        return None
    if not repository.diff and not repository.untracked:
        return "nothing"
    counts = [
        f"{file} +{sum(line[0] == '+' for line in lines)} -{sum(line[0] == '-' for line in lines)}"
        for file, lines in changed_lines(repository.diff).items()
    ]
    counts += [f"{file} (untracked)" for file in repository.untracked]
    text = repository.diff + "".join(f"{name}\0{text}\0" for name, text in repository.untracked.items())
    more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
    return f"{', '.join(counts[:3])}{more} [{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:6]}]"


def statistics_digest(manifest: RecordedManifest) -> str:
    """A short digest of the ranges of actions and states."""
    return hashlib.sha256(repr(_sorted(manifest.statistics)).encode()).hexdigest()[:12]


def _sorted(value: object) -> object:
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


def _fact(what: str, values: Sequence[str | None]) -> FactDifference | None:
    """None if all runs that tell it say the same."""
    return FactDifference(what, tuple(values)) if len({v for v in values if v is not None}) > 1 else None


def _comparable_packages(manifests: Sequence[RecordedManifest]) -> list[str]:
    """Those that any run has; beside a manifest that names a few of them, those that all name."""
    recorded = [manifest for manifest in manifests if manifest.format]
    names = sorted({name for manifest in recorded for name in manifest.packages}, key=str.lower)
    if all(manifest.format > 1 for manifest in recorded):
        return names
    return [name for name in names if all(name in manifest.packages for manifest in recorded)]


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest[:12]
