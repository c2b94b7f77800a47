"""Image codes are those of a dataset's images, whatever is made of its actions and states, or cameras are called."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store import ColourEncoder

from vlatrack.builders.data import open_dataset_of
from vlatrack.data.augmentation import Augmentation, Variant
from vlatrack.data.store.token_store import StoredDataset, TokenStore
from vlatrack.spec.data import LeRobotSource

FIXTURE = Path(__file__).parent / "fixtures" / "lerobot-v3-video"
CAMERA = "observation.images.corner2"
RENAMED = {"cameras": {CAMERA: "front"}}
MAPPED = [
    {"actions": {"dimensions": [2, 0, 1]}},
    {"actions": {"gripper": {"dimension": 3, "convention": "raw", "to": "openvla"}}, "states": {"scale": {"0": 0.01}}},
    RENAMED,
]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """With the codes of the dataset as it is."""
    store, encoder = TokenStore(tmp_path), ColourEncoder()
    dataset = opened(store)
    store.encode(dataset, dataset.table.all(), CAMERA, encoder, first_id=4)
    assert len(encoder.encoded) == 288
    return store


def opened(store: TokenStore, **mapping: Any) -> StoredDataset:
    return open_dataset_of(LeRobotSource.model_validate({"kind": "lerobot", "path": str(FIXTURE), **mapping}), store)


@pytest.mark.parametrize("mapping", MAPPED)
def test_another_mapping_encodes_no_image_again(store: TokenStore, mapping: dict[str, Any]) -> None:
    plain, mapped, encoder = opened(store), opened(store, **mapping), ColourEncoder()
    assert plain.image_key == plain.key != mapped.key, "its numbers are others"
    (camera,) = mapped.source.cameras
    codes = store.codes(mapped, mapped.table.all(), camera, encoder, first_id=4)
    assert not encoder.encoded
    numbers, steps = np.arange(3), np.zeros((3, 1), np.int64)
    as_it_is = store.codes(plain, plain.table.all(), CAMERA, encoder, first_id=4)
    assert np.array_equal(codes.gather(numbers, steps), as_it_is.gather(numbers, steps))


def test_what_decides_how_images_look_still_encodes_them(store: TokenStore) -> None:
    renamed, skipping = opened(store, **RENAMED), opened(store, skip_bad=True)
    variant = Variant(Augmentation(), 0, 1)
    folders = {
        store.shards(dataset, camera, ColourEncoder(), first_id=4, variant=of).folder
        for dataset, camera, of in (
            (opened(store), CAMERA, None),
            (opened(store), CAMERA, variant),
            (renamed, "front", variant),  # how an image is changed is drawn by the name of its camera
            (skipping, CAMERA, None),
        )
    }
    assert len(folders) == 4
