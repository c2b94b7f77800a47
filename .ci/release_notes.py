"""Print what CHANGELOG.md says of a version: python .ci/release_notes.py 0.2.0

It is an error if the package or CITATION.cff has another version, so that no release is tagged by mistake.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(root: Path, version: str) -> str:
    """The section of the version, without its heading; ValueError if the files do not agree on it."""
    for name, pattern in (("vlatrack/__init__.py", r'^__version__ = "(.+)"$'), ("CITATION.cff", r"^version: (.+)$")):
        found = re.findall(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found != [version]:
            raise ValueError(f"{name} has version {', '.join(found) or 'none'}, not {version}: set it there")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}\n(.*?)(?=^## \[|\Z)"
    section = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD': make it of [Unreleased]")
    return section[1].strip()


if __name__ == "__main__":
    try:
        print(release_notes(ROOT, sys.argv[1] if len(sys.argv) > 1 else ""))
    except ValueError as error:
        sys.exit(f"error: {error}")
