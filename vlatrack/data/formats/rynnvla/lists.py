"""The lists of RynnVLA-002 and WorldVLA: long JSON files, read one entry at a time, and the YAML that names them."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from vlatrack.errors import DataError

_PIECE = 1 << 20  # characters that are read at once
_LONGEST_ENTRY = 16 << 20  # characters of one entry
_MOST_KNOWN_FOLDERS = 1000
_LARGEST_CONFIG = 1 << 20  # bytes of a YAML
_KEYS = ("path", "ratio", "type")  # of an entry of META


class DataRoot:
    """The folder below which all files that a list names must lie, wherever the list says that they are.

    The reference writes paths relative to the folder from which its scripts are started (`../processed_data/…`), or
    absolute ones. A path is looked for from the working directory, as the reference does, then from the list's folder
    and from the root, and at last by what follows the root's own name in it, which finds data that has been moved.

    Args:
        of: the list.
        root: None: the folder above the list's, `processed_data` in the reference's arrangement
            `processed_data/{concate_tokens,convs,tokens,…}`.
    """

    def __init__(self, of: Path, root: Path | None) -> None:
        folder = Path(os.path.abspath(of)).parent  # noqa: PTH100  # lexical: a link may lead to another disk
        self.folder = folder.parent if root is None else Path(os.path.abspath(root))  # noqa: PTH100
        self._below = f"{self.folder}{os.sep}".replace(os.sep * 2, os.sep)
        self._starts = (str(Path.cwd()), str(folder), str(self.folder))
        self._known: dict[str, Path] = {}  # where the files of a folder are, by the folder as it is written

    def locate(self, written: object, place: str) -> tuple[Path, str]:
        """The folder and the name of the file that a list means.

        Files that are written with the same folder lie in the same one, so that millions of them are found fast;
        whether one is there shows when it is opened.

        Raises:
            DataError: it is not below the root, or there is no such folder for the first file of a list.
        """
        if not isinstance(written, str) or "\0" in written:
            raise DataError(f"{place}: {written!r:.80} is no path of a file; restore the list")
        folder, _, name = written.rpartition("/")
        if name in ("", ".", ".."):
            raise DataError(f"{place}: {written!r:.200} is no path of a file; restore the list")
        if folder not in self._known:
            if len(self._known) > _MOST_KNOWN_FOLDERS:
                self._known.clear()
            self._known[folder] = self._find(written, place).parent
        return self._known[folder], name

    def _find(self, written: str, place: str) -> Path:
        inside = [path for path in self._candidates(written) if path.startswith(self._below)]
        for path in inside:
            if (found := Path(path)).parent.is_dir():
                return found
        if inside and self._known:  # some data is missing, not all in another place: what reads it will say so
            return Path(inside[0])
        if inside:
            raise DataError(f"{place}: no file {written!r:.200} below {self.folder}; restore it, or give its root")
        raise DataError(f"{place}: {written!r:.200} is not below {self.folder}; give the folder of the data as root")

    def _candidates(self, written: str) -> Iterator[str]:
        for start in self._starts:
            yield os.path.normpath(f"{start}/{written}" if written[0] != "/" else written)
        _, name, behind = f"/{written}".rpartition(f"/{self.folder.name}/")
        if name:
            yield os.path.normpath(f"{self._below}{behind}")


@dataclass(frozen=True)
class ListedRows:
    """One `path:` of a YAML: a list of records."""

    file: Path
    ratio: float  # of its rows that an epoch shows
    group: str  # `type`, a name for such rows; the reference makes batches of rows of one type
    root: DataRoot


def read_meta(path: Path, root: Path | None) -> list[ListedRows]:
    """The lists that a YAML of the reference names under META, or the one JSON list that the path is.

    A relative path is looked for from the working directory, as the reference does, and then from the YAML's folder and
    the folders above it.

    Raises:
        DataError: it is no such file, or a list is not there.
    """
    if path.suffix in (".json", ".jsonl"):
        return [ListedRows(path, 1.0, "default", DataRoot(path, root))]
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise DataError(f"{path}: too large for the YAML of a list; give that, or the list itself (.json, .jsonl)")
        config = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a YAML with META, or a .json list") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())[:120]}); restore the file") from None
    metas = config.get("META") if isinstance(config, dict) else None
    if isinstance(metas, dict) and "raw_data_dir" in metas:
        raise DataError(
            f"{path}: it names HDF5 files ({metas['raw_data_dir']!r:.100}), not records; use kind: libero_hdf5 for them"
        )
    if not isinstance(metas, list) or not metas:
        raise DataError(f"{path}: no META with a list of paths in it; give the YAML of a pre-tokenised training")
    return [_listed(path, number, meta, root) for number, meta in enumerate(metas)]


def _listed(config: Path, number: int, meta: object, root: Path | None) -> ListedRows:
    place = f"{config}: META.{number}"
    if not isinstance(meta, dict) or not isinstance(written := meta.get("path"), str):
        raise DataError(f"{place} has no path; give it the path of a list (.json, .jsonl)")
    if Path(written).suffix not in (".json", ".jsonl"):
        raise DataError(f"{place}: {written!r:.200} is neither .json nor .jsonl; other lists are not read")
    if unknown := [key for key in meta if key not in _KEYS]:
        raise DataError(f"{place}: unknown key {str(unknown[0])!r:.60} (known here: {', '.join(_KEYS)})")
    ratio, group = meta.get("ratio", 1.0), meta.get("type", "default")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1 or math.isnan(ratio):
        raise DataError(f"{place}: ratio is {ratio!r:.40}; a share of the rows is above 0 and at most 1")
    if root is not None:
        found = Path(*DataRoot(config, root).locate(written, place))
    else:
        starts = (Path.cwd(), *config.absolute().parents)
        paths = [Path(os.path.normpath(start / written)) for start in starts]
        existing = next((candidate for candidate in paths if candidate.is_file()), None)
        if existing is None:
            raise DataError(f"{place}: no file {written!r:.200} from here or {config.parent}; correct it, or give root")
        found = existing
    return ListedRows(found, float(ratio), str(group)[:100], DataRoot(found, root))


def read_entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array, or of the lines of a .jsonl file, with their numbers; memory for one at a time.

    Raises:
        DataError: the file cannot be read, or is something else.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            yield from enumerate(_of_lines(file, stream) if file.suffix == ".jsonl" else _of_array(file, stream))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore the list") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8; restore the list") from None


def _of_lines(file: Path, stream: IO[str]) -> Iterator[Any]:
    number = 0
    while line := stream.readline(_LONGEST_ENTRY):
        number += 1
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}: line {number} is not JSON ({error!s:.80}); remove or restore it") from None
        if not isinstance(entry, dict):
            raise DataError(f"{file}: line {number} is no object; restore the list")
        yield entry


def _of_array(file: Path, stream: IO[str]) -> Iterator[Any]:
    text = _Text(file, stream)
    if text.take() != "[":
        raise DataError(f"{file}: no JSON array; give a list of records or conversations")
    if text.peek() == "]":
        return
    while True:
        yield text.take_object()
        match text.take():
            case "]":
                return
            case "":
                raise DataError(f"{file}: cut off after entry {text.objects - 1}; restore the list")
            case other if other != ",":
                raise DataError(f"{file}: neither comma nor end after entry {text.objects - 1}; restore the list")


class _Text:
    """JSON text of any length, of which a piece is in memory."""

    def __init__(self, file: Path, stream: IO[str]) -> None:
        self.objects = 0
        self._file, self._stream, self._text, self._position = file, stream, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in " \t\r\n":
                    return self._text[self._position]
                self._position += 1
            if not self._read_on():
                return ""

    def take(self) -> str:
        """The same, and what follows it is next."""
        found = self.peek()
        self._position += len(found)
        return found

    def take_object(self) -> Any:
        """The JSON object that is next; one that is not whole in memory is tried again with more of the file."""
        if self.peek() != "{":
            raise DataError(f"{self._file}: entry {self.objects} is no object; restore the list")
        while True:
            try:
                found, self._position = self._decode(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._position > _LONGEST_ENTRY or not self._read_on():
                    reason = f"entry {self.objects} is not JSON ({error!s:.80})"
                    raise DataError(f"{self._file}: {reason}; restore the list") from None
            else:
                self.objects += 1
                return found

    def _read_on(self) -> bool:
        """Replace what has been read by the rest and at least as much of what follows; whether anything does."""
        rest = self._text[self._position :]
        more = self._stream.read(max(_PIECE, len(rest)))
        self._text, self._position = rest + more, 0
        return bool(more)
