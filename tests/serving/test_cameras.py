"""Which image of a request is which camera's, and what is said when one is missing."""

import numpy as np
import pytest
from served import image

from vlatrack.errors import ObservationError, ServingError
from vlatrack.inference.observation import Interface
from vlatrack.serving.cameras import ObservationReader


def reader(*cameras: str, state_dim: int | None = None, history: int = 2, **keys: str) -> ObservationReader:
    return ObservationReader(Interface(cameras, state_dim, history, 3, 2), keys)


def corners(found) -> dict[str, int]:
    """Of the last moment."""
    return {camera: int(pixels[0, 0, 0]) for camera, pixels in found.moments[-1].images.items()}


@pytest.mark.parametrize(
    ("cameras", "request_", "expected"),
    [
        (["front"], {"observation/front": 1}, {"front": 1}),
        (["front"], {"observation/image": 1, "observation/wrist_image": 2}, {"front": 1}),
        (["front", "wrist"], {"observation/image": 1, "observation/wrist_image": 2}, {"front": 1, "wrist": 2}),
        (["front", "wrist"], {"images": {"agentview": 1, "wrist": 2}}, {"front": 1, "wrist": 2}),
        (["agentview_rgb", "eye_in_hand_rgb"], {"images/agentview": 1, "images/wrist": 2}, None),
        (["left", "right"], {"images": {"right": 2, "left": 1}}, {"left": 1, "right": 2}),
        (["observation.images.corner2"], {"observation/corner2": 1}, {"observation.images.corner2": 1}),
        (["observation.images.corner2"], {"observation.images.corner2": 1}, {"observation.images.corner2": 1}),
    ],
)
def test_images_are_found_by_name_and_where_libero_has_them(cameras, request_, expected) -> None:
    def images(entry):
        return {k: images(v) for k, v in entry.items()} if isinstance(entry, dict) else image(entry)

    found = corners(reader(*cameras).read(images(request_) | {"prompt": "push"}))
    assert found == (expected or dict(zip(cameras, (1, 2), strict=True)))


def test_a_camera_can_be_given_another_key() -> None:
    found = reader("front", front="images/top").read({"images": {"top": image(7)}, "task_description": "push"})
    assert corners(found) == {"front": 7}
    with pytest.raises(ServingError, match="has no camera side; it sees front"):
        reader("front", side="images/top")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"observation/image": None},
            "lacks the image of front, expected as .*observation/front or .*; it has no",
        ),
        (
            {"observation/image": None, "observation/side": image(1)},
            "it has 'observation/side'; `vlatrack serve",
        ),
        ({"observation/side": image(1)}, "an unknown camera, 'observation/side'; the policy sees front"),
        ({"side": image(1)}, "an unknown camera, 'side'"),
        ({"images": {"side\n": image(1)}}, r"an unknown camera, 'images/side\\n'"),
        ({"observation/image": image(1).astype(np.float32)}, "front is float32"),
        ({"observation/image": np.zeros((1, 9000, 3), np.uint8)[:, :, :1]}, "expected an RGB array"),
        ({"observation/image": np.zeros((3, 8, 8, 3), np.uint8)}, "the images have 3 moments; the policy sees 2"),
        ({"observation/image": np.zeros((0, 8, 8, 3), np.uint8)}, "the images have 0 moments"),
        ({"observation/image": np.broadcast_to(np.uint8(0), (4000, 3000, 3))}, "3000 x 4000 pixels, more than"),
        ({"prompt": None}, "has no instruction"),
        ({"prompt": b"push"}, "has no instruction"),
        ({"prompt": "p" * 2001}, "more than 2,000 characters"),
        ({"observation/state": None}, "lacks the proprioceptive state, 2 numbers"),
        ({"observation/state": "here"}, "the state is a str"),
        ({"observation/state": [1.0, 2.0, 3.0]}, r"the state is float64 \[3\]; expected 2 numbers"),
    ],
)
def test_what_a_request_lacks_or_has_too_much_is_one_line(change: dict, told: str) -> None:
    request = {"observation/image": image(1), "observation/state": [0.5, 1], "prompt": "push"}
    assert reader("front", state_dim=2).read(request).moments[0].state.tolist() == [0.5, 1]
    changed = {key: value for key, value in (request | change).items() if value is not None}
    with pytest.raises(ObservationError, match=told) as raised:
        reader("front", state_dim=2).read(changed)
    assert "\n" not in str(raised.value)


def test_a_request_that_is_no_map_is_refused() -> None:
    with pytest.raises(ObservationError, match="not a list"):
        reader("front").read([1])


def test_a_state_is_left_out_for_a_policy_without_one() -> None:
    found = reader("front").read({"observation/image": image(1), "observation/state": np.zeros(8), "prompt": "push"})
    assert found.moments[0].state is None


def test_images_of_several_moments_are_all_that_the_policy_sees() -> None:
    stacked = np.stack([image(1), image(2)])
    found = reader("front").read({"observation/image": stacked, "prompt": "push"})
    assert [int(moment.images["front"][0, 0, 0]) for moment in found.moments] == [1, 2]
    assert found.complete
    assert reader("front").read({"observation/image": stacked[:1], "prompt": "push"}).complete
    assert not reader("front").read({"observation/image": image(1), "prompt": "push"}).complete
