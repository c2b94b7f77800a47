"""An episode as a video: all cameras side by side, the instruction above, the numbers of the action below."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlatrack.data.episodes import Episode, EpisodeSource, action_names
from vlatrack.data.recorded import image_sizes
from vlatrack.data.video import VideoWriter
from vlatrack.data.view.choice import frames_side_by_side
from vlatrack.data.view.output import appearing

SHOWN_HEIGHT = 256  # of an image, at least: a smaller one is repeated, not smoothed
_LARGEST_HEIGHT = 480
_NARROWEST = 400
_LINE, _FONT, _GAP = 18, 13, 6
_NAME_WIDTH, _NUMBER_WIDTH = 120, 64
_MOST_LINES = 4  # of an instruction
_ROWS = 8  # of numbers below each other, then the next column begins
_BACKGROUND, _TEXT, _DIM, _BAR = (24, 26, 30), (235, 235, 235), (140, 145, 155), (86, 156, 255)


def write_video(source: EpisodeSource, episode: Episode, cameras: Sequence[str], path: Path) -> None:
    """Write an episode as an mp4 file (H.264) in its own speed; it appears when it is whole.

    Raises:
        DataError: the images cannot be read, or the file cannot be written.
    """
    sizes = image_sizes(source, episode, cameras)
    picture = EpisodePicture(episode, names=action_names(source), sizes=sizes, fps=source.fps)
    with appearing(path) as unfinished:
        writer = VideoWriter(unfinished, fps=max(1, round(source.fps)), height=picture.height, width=picture.width)
        steps = enumerate(frames_side_by_side(source, episode, cameras))
        writer.add(picture.draw(step, images) for step, images in steps)
        writer.close()


@dataclass(frozen=True)
class _Bar:
    """Where a number of the action is drawn, and which value fills the half of its bar."""

    left: int
    top: int
    width: int
    most: float


class EpisodePicture:
    """Draws the steps of an episode, each as a picture of the same size.

    Args:
        names: one for each number of the action.
        sizes: height and width of the images of each camera.
        fps: steps in a second.
    """

    def __init__(
        self, episode: Episode, *, names: Sequence[str], sizes: Mapping[str, tuple[int, int]], fps: float
    ) -> None:
        self._episode, self._fps = episode, fps
        self._font = ImageFont.load_default(_FONT)
        self._shown = _shown_sizes(sizes)
        images_width = sum(width + _GAP for _, width in self._shown.values()) - _GAP
        columns = -(-len(names) // _ROWS)
        self.width = _even(max(_NARROWEST, images_width, columns * (_NAME_WIDTH + _NUMBER_WIDTH + 100)))
        title = textwrap.wrap(episode.task, max(10, self.width // 8), max_lines=_MOST_LINES, placeholder=" …")
        self._images_top = _LINE * (len(title) + 1) + _GAP
        bars_top = self._images_top + max(height for height, _ in self._shown.values()) + _LINE + _GAP
        self.height = _even(bars_top + _LINE * min(len(names), _ROWS) + _GAP)
        self._bars = self._placed_bars(len(names), columns, bars_top)
        self._base = self._drawn_base(title, names)

    def draw(self, step: int, images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The picture of a step, [height, width, 3], from the image of each camera."""
        picture = self._base.copy()
        pen, left = ImageDraw.Draw(picture), 0
        for camera, (height, width) in self._shown.items():
            image = Image.fromarray(images[camera])
            how = Image.Resampling.NEAREST if height >= image.height else Image.Resampling.LANCZOS
            picture.paste(image.resize((width, height), how), (left, self._images_top))
            left += width + _GAP
        when = f"step {step} of {self._episode.length}, {step / self._fps:.2f} s"
        pen.text((_GAP, self._images_top - _LINE - 2), when, fill=_DIM, font=self._font)
        for bar, value in zip(self._bars, self._episode.actions[step].tolist(), strict=True):
            self._draw_bar(pen, bar, value)
        return np.asarray(picture)

    def _draw_bar(self, pen: ImageDraw.ImageDraw, bar: _Bar, value: float) -> None:
        middle = bar.left + bar.width // 2
        end = middle + round(value / bar.most * (bar.width // 2))
        pen.rectangle((min(middle, end), bar.top + 4, max(middle, end), bar.top + _LINE - 4), fill=_BAR)
        pen.line((middle, bar.top + 2, middle, bar.top + _LINE - 2), fill=_DIM)
        pen.text((bar.left + bar.width + _GAP, bar.top), f"{value:+.3g}", fill=_TEXT, font=self._font)

    def _placed_bars(self, count: int, columns: int, top: int) -> list[_Bar]:
        column_width = self.width // columns
        most = np.abs(self._episode.actions).max(axis=0)
        return [
            _Bar(
                left=number // _ROWS * column_width + _NAME_WIDTH,
                top=top + number % _ROWS * _LINE,
                width=column_width - _NAME_WIDTH - _NUMBER_WIDTH - _GAP,
                most=float(most[number]) or 1.0,
            )
            for number in range(count)
        ]

    def _drawn_base(self, title: Sequence[str], names: Sequence[str]) -> Image.Image:
        base = Image.new("RGB", (self.width, self.height), _BACKGROUND)
        pen, left = ImageDraw.Draw(base), 0
        for number, line in enumerate(title):
            pen.text((_GAP, _GAP // 2 + number * _LINE), line, fill=_TEXT, font=self._font)
        for camera, (height, width) in self._shown.items():
            below = self._images_top + height + 2
            pen.text((left + 2, below), self._fitting(camera, width), fill=_DIM, font=self._font)
            left += width + _GAP
        for bar, name in zip(self._bars, names, strict=True):
            text = self._fitting(name, _NAME_WIDTH - 2 * _GAP)
            pen.text((bar.left - _NAME_WIDTH + _GAP, bar.top), text, fill=_DIM, font=self._font)
        return base

    def _fitting(self, text: str, width: int) -> str:
        """The text, or its end, after an ellipsis, that fits into so many pixels."""
        shown = text
        while len(shown) > 2 and self._font.getlength(shown) > width:
            shown = f"…{shown[2:]}"
        return shown


def _shown_sizes(sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Height and width of each camera's image in the picture: all are equally high."""
    tallest = max(height * -(-SHOWN_HEIGHT // height) for height, _ in sizes.values())
    shown = _even(min(tallest, _LARGEST_HEIGHT))
    return {camera: (shown, max(2, round(width * shown / height))) for camera, (height, width) in sizes.items()}


def _even(number: int) -> int:
    return number + number % 2
