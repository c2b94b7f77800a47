"""Flips of bits and truncations of an RLDS dataset, each by its seed."""

import random
import shutil
from pathlib import Path

from rlds_writer import episode_features, steps_of, write_rlds
from toy_source import ToySource

from vlatrack.data.episodes import episodes_digest
from vlatrack.data.formats.rlds.dataset import RldsDataset
from vlatrack.errors import DataError


def whole_dataset(folder: Path) -> Path:
    source = ToySource(episodes=4)
    records = [
        episode_features(source, episode, "JPEG" if episode.index % 2 else "PNG") for episode in source.episodes()
    ]
    return write_rlds(folder, records, steps=steps_of(source, 32, 32))


def content_of(folder: Path) -> str:
    """A digest of all that is read of a dataset."""
    source = RldsDataset(folder, fps=10)
    episodes = source.episodes()
    pixels = [source.frames(episode, camera).sum() for episode in episodes for camera in source.cameras]
    return f"{episodes_digest(episodes)} {source.cameras} {pixels}"


def damage(folder: Path, seed: int) -> tuple[Path, str]:
    """Flip a bit of one file, or cut it off; returns which, and how."""
    rng = random.Random(seed)
    file = rng.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        content[at] ^= 1 << rng.randrange(8)
        how = f"flip at {at}"
    else:
        del content[at:]
        how = f"cut off at {at}"
    file.write_bytes(content)
    return file, how


def outcome(whole: Path, folder: Path, seed: int) -> str:
    """`told`, `nothing changed`, or what is wrong: records that are read differently, or no clear line."""
    shutil.copytree(whole, folder)
    try:
        file, how = damage(folder, seed)
        try:
            found = content_of(folder)
        except DataError as error:
            return "told" if str(folder) in str(error) and "\n" not in str(error) else f"seed {seed}, {how}: {error}"
        is_harmless = file.suffix == ".json" or found == content_of(whole)
        return "nothing changed" if is_harmless else f"seed {seed}, {file.name}, {how}: read differently"
    except Exception as error:
        return f"seed {seed}: {error!r}"
    finally:
        shutil.rmtree(folder)
