"""The optional packages of serving."""

from importlib.util import find_spec

from vlatrack.errors import MissingPackageError


def require_packages() -> None:
    """Raise MissingPackageError unless all are installed."""
    missing = [package for package in ("msgpack", "websockets") if find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"serving a policy needs {' and '.join(missing)}: pip install 'vlatrack[serve]'")
