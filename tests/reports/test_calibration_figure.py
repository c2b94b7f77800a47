from pathlib import Path

import numpy as np
from PIL import Image

from vlatrack.reports.calibration import draw_calibration

ROWS = [
    {"from": 0.2, "to": 0.3, "tokens": 30, "confidence": 0.25, "accuracy": 0.2},
    {"from": 0.9, "to": 1.0, "tokens": 10, "confidence": 0.97, "accuracy": float("nan")},
]


def test_each_split_has_its_colour(tmp_path: Path) -> None:
    seen = []
    for name, tables in {"one": {"val_ind": ROWS}, "two": {"val_ind": ROWS, "val_ood": ROWS}}.items():
        assert draw_calibration(tables, tmp_path / f"{name}.png", title="a run")
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        colours = ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00))
        seen.append([bool((image == colour).all(-1).sum() > 20) for colour in colours])
    assert seen == [[True, False], [True, True]]


def test_without_action_tokens_there_is_no_figure(tmp_path: Path) -> None:
    assert not draw_calibration({"val_ind": []}, tmp_path / "none.png", title="a run")
    assert list(tmp_path.iterdir()) == []
