"""Images as code ids: by the ChameleonVQVAE of a checkpoint, or by a codebook that is fitted to the data.

Shapes: N images, R x C codes each (one code covers 16 x 16 pixels).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import ChameleonVQVAE

from vlatrack.errors import CheckpointError
from vlatrack.tokens.chameleon_vq import ids_by_code, known_vq_fields, random_vq, split_decoder, stored_vq, vq_codes
from vlatrack.tokens.layout import CHAMELEON_PREFIX, PIXELS_PER_CODE, TokenLayout
from vlatrack.tokens.patches import CodePatches
from vlatrack.tokens.pixels import as_tensor, fit_chunks, images_at_once, memory_format, pixels_of, thumbnails_of
from vlatrack.tokens.projections import ProjectionQuantizer
from vlatrack.tokens.squares import SquareQuantizer, kmeans_centres, squares_of
from vlatrack.tokens.vq_decoder import VqDecoder, stored_decoder

FittedEncoder = Literal["squares", "projections", "convolutions"]
ImageEncoder: TypeAlias = ChameleonVQVAE | SquareQuantizer | ProjectionQuantizer

_WEIGHTS, _SETTINGS = "image_tokenizer.safetensors", "image_tokenizer.json"
_PREPARED_AT_ONCE = 32  # images
_FEATURE_SAMPLES = 60_000  # features for k-means; more do not change the centres noticeably


class ImageDecoder(Protocol):
    """From codes back to pixels."""

    @property
    def description(self) -> str:
        """How, for people."""

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes [N, R, C] to RGB [N, R * P, C * P, 3]."""

    def save(self, folder: Path) -> None:
        """Write the decoder into the folder of an image tokenizer; raises CheckpointError."""


def resized(frames: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """RGB images [N, height, width, 3] in another size, [N, image_size, image_size, 3]."""
    chunks = fit_chunks(frames) or [frames]
    pixels = [((pixels_of(chunk, image_size) + 1) * 127.5).round().clamp(0, 255).byte() for chunk in chunks]
    return torch.cat(pixels).permute(0, 2, 3, 1).numpy()


class ImageTokenizer:
    """A frozen image encoder and codebook, with the token id of each code."""

    def __init__(
        self,
        vq: ImageEncoder,
        *,
        image_size: int,
        code_ids: NDArray[np.int64],
        decoder: ImageDecoder | None = None,
    ) -> None:
        """
        Args:
            vq: the encoder and quantiser.
            image_size: pixels of each side; images of another size are resized.
            code_ids: token id of each code, [number of codes].
            decoder: from codes back to pixels.
        """
        vq.eval().requires_grad_(False)
        self._vq = vq
        self._code_ids = self._ids_on_device = torch.from_numpy(code_ids)
        self.image_size, self.decoder = image_size, decoder

    @property
    def codes_per_side(self) -> int:
        return self.image_size // PIXELS_PER_CODE

    @property
    def code_ids(self) -> NDArray[np.int64]:
        """The token id of each code."""
        return self._code_ids.numpy()

    def to(self, device: torch.device | str) -> Self:
        """The same tokenizer, encoding and decoding on ``device``."""
        self._ids_on_device = self._code_ids.to(device)
        for module in (self._vq, self.decoder):
            if isinstance(module, nn.Module):
                module.to(device)
                module.to(memory_format=memory_format(torch.device(device)))  # type: ignore[call-overload]
        return self

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        """RGB images uint8 [N, height, width, 3] to token ids int64 [N, R, C].

        The ids of an image do not depend on the others, nor on their number: every forward pass is one of the same
        number of images, the last filled up with empty ones.
        """
        return self.encode_tensors([as_tensor(frames)]).cpu().numpy()

    def encode_tensors(self, frames: Iterable[Tensor]) -> Tensor:
        """The same of images in parts, each of one size, uint8 [N, height, width, 3]: int64 [N of all, R, C].

        The ids are where the tokenizer is. Of a GPU, nothing here waits for it, if the images are there or pinned.
        """
        side = self.codes_per_side
        with torch.inference_mode():
            codes = [self._codes_of_prepared(images) for images in self._prepared_parts(frames)]
            if not codes:
                return torch.empty((0, side, side), dtype=torch.int64)
            return self._ids_on_device[torch.cat(codes)].view(-1, side, side)

    def _prepared_parts(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """What the encoder takes. More images than fit one forward pass are prepared together, which is faster; those
        of several sizes are put together, so that few passes are filled up."""
        count = images_at_once(self.image_size, self._vq.device)
        together = count * -(-_PREPARED_AT_ONCE // count)
        held: list[Tensor] = []
        for images in frames:
            for some in torch.split(images, together):
                prepared = self._prepared(some.to(self._vq.device, non_blocking=True))
                if held and (prepared.dtype != held[0].dtype or sum(map(len, held)) >= together):
                    yield torch.cat(held) if len(held) > 1 else held[0]
                    held = []
                held.append(prepared)
        if held and sum(map(len, held)):
            yield torch.cat(held) if len(held) > 1 else held[0]

    def _codes_of_prepared(self, images: Tensor) -> Tensor:
        """The codes [N, R * C] of N images, by forward passes of the same number of images."""
        count = images_at_once(self.image_size, self._vq.device)
        if missing := -len(images) % count:
            images = torch.cat([images, images.new_zeros((missing, *images.shape[1:]))])
        codes = torch.cat([self.codes_of(part) for part in torch.split(images, count)])
        return codes[: len(codes) - missing]

    def _prepared(self, frames: Tensor) -> Tensor:
        """Frames uint8 [N, height, width, 3] as the encoder takes them."""
        size = self.image_size
        if isinstance(self._vq, ProjectionQuantizer):
            return thumbnails_of(frames)
        if isinstance(self._vq, SquareQuantizer) and frames.shape[1:3] == (size, size):
            return frames.permute(0, 3, 1, 2)
        return pixels_of(frames, size)

    def codes_of(self, images: Tensor) -> Tensor:
        """The bare encoder: images [n, 3, S, S] in [-1, 1], of projections thumbnails [n, D], to codes [n, R * C]."""
        if isinstance(self._vq, ChameleonVQVAE):
            return vq_codes(self._vq, images.contiguous(memory_format=memory_format(images.device)))
        nearest: Tensor = self._vq(images)
        return nearest

    def resized(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB images [N, height, width, 3] in the size that is encoded, [N, image_size, image_size, 3]."""
        return resized(frames, self.image_size)

    def fit_decoder(self, frames: NDArray[np.uint8]) -> None:
        """Decode a code to the mean of the pixels that it stands for in ``frames`` [N, height, width, 3]."""
        codes = self._codes_of(self.encode(frames))
        self.decoder = CodePatches.fit(codes, self.resized(frames), codebook_size=len(self._code_ids))

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Token ids [N, R, C] to RGB images [N, image_size, image_size, 3]; there must be a decoder.

        An id that is no code of this tokenizer is grey.
        """
        assert self.decoder is not None
        return self.decoder.decode(self._codes_of(ids))

    def _codes_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The code of each id; -1 for what is none."""
        known = self.code_ids
        order = np.argsort(known)
        place = np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)
        codes: NDArray[np.int64] = order[place]
        return np.where(known[codes] == ids, codes, -1)

    # --- where tokenizers come from -----------------------------------------------------------

    @classmethod
    def fit(
        cls,
        frames: NDArray[np.uint8],
        *,
        image_size: int,
        codebook_size: int,
        seed: int,
        layout: TokenLayout,
        encoder: FittedEncoder = "squares",
        base_channels: int = 32,
    ) -> Self:
        """A small tokenizer whose codebook is fitted to the data.

        Args:
            frames: RGB images uint8 [N, height, width, 3] of the training episodes.
            codebook_size: of all places together, where each has codes of its own: with ``projections``.
            encoder: ``squares``: k-means of squares of pixels; ``projections``: training images, compared in random
                projections, from whose codes places are read best; ``convolutions``: k-means of random features,
                whose codes tell far less of where things are.
            base_channels: of the convolutions.
        """
        ids = layout.first_image_code + np.arange(codebook_size)
        if encoder == "projections":
            thumbnails = torch.cat([thumbnails_of(chunk) for chunk in fit_chunks(frames)]).numpy()
            places = (image_size // PIXELS_PER_CODE) ** 2
            fitted = ProjectionQuantizer.fit(thumbnails, places=places, codes=codebook_size // places, seed=seed)
            return cls(fitted, image_size=image_size, code_ids=ids)
        if encoder == "squares":
            pixels = [pixels_of(chunk, image_size) for chunk in fit_chunks(frames)]
            squares = torch.cat([squares_of(chunk) for chunk in pixels]).numpy()
            return cls(
                SquareQuantizer.fit(squares, codes=codebook_size, seed=seed), image_size=image_size, code_ids=ids
            )
        vq = random_vq(image_size=image_size, codebook_size=codebook_size, base_channels=base_channels, seed=seed)
        features = _features(vq, frames, image_size)
        generator = np.random.default_rng(seed)
        if len(features) > _FEATURE_SAMPLES:
            features = features[generator.choice(len(features), _FEATURE_SAMPLES, replace=False)]
        vq.quantize.embedding.weight.data.copy_(torch.from_numpy(kmeans_centres(features, codebook_size, seed)))
        return cls(vq, image_size=image_size, code_ids=ids)

    @classmethod
    def from_chameleon(
        cls,
        config: Mapping[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
        *,
        place: Path,
        image_size: int,
        layout: TokenLayout,
    ) -> Self:
        """The tokenizer inside a Chameleon checkpoint.

        Args:
            config: the checkpoint's config.json.
            tensors: its weights whose names begin with ``CHAMELEON_PREFIX``.
            place: the checkpoint's folder, for messages.
            layout: the token ids of the backbone that reads the codes.

        Raises:
            CheckpointError: the checkpoint has no image tokenizer, or one whose files do not fit.
        """
        weights, of_decoder = split_decoder((name.removeprefix(CHAMELEON_PREFIX), value) for name, value in tensors)
        vocabulary = config.get("vocabulary_map")
        if not weights or not isinstance(vocabulary, Mapping) or not any(map(_is_code, vocabulary)):
            raise CheckpointError(
                f"{place}: no image tokenizer in it ({CHAMELEON_PREFIX}*, vocabulary_map); name one that has it"
            )
        geometry = known_vq_fields(config.get("vq_config") or {})
        vq = stored_vq(geometry, weights, place)
        decoder = None if not of_decoder else stored_decoder(geometry, {**weights, **of_decoder}, place)
        ids = np.asarray(ids_by_code(vocabulary, vq.config.num_embeddings, place), np.int64)
        ids += layout.first_image_code - TokenLayout.first_image_code
        return cls(vq, image_size=image_size, code_ids=ids, decoder=decoder)

    def fingerprint(self) -> str:
        """sha256 of everything that determines the ids of an image, which the decoder does not."""
        digest = hashlib.sha256(f"{self.image_size}".encode() + self._code_ids.numpy().tobytes())
        for name, value in sorted(self._vq.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @staticmethod
    def is_saved(folder: Path) -> bool:
        """Whether ``folder`` holds a tokenizer, by the file that is written last."""
        return (folder / _SETTINGS).is_file()

    def save(self, folder: Path) -> None:
        """Write the tokenizer, for ``load``.

        Raises:
            CheckpointError: it cannot be written.
        """
        settings = {
            "image_size": self.image_size,
            "code_ids": self._code_ids.tolist(),
            **_geometry(self._vq),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            weights = {name: value.contiguous() for name, value in self._vq.state_dict().items()}
            (folder / _WEIGHTS).write_bytes(save(weights))  # `save_file` would not heed the umask
            if self.decoder is not None:
                self.decoder.save(folder)
            (folder / _SETTINGS).write_text(json.dumps(settings) + "\n")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: the image tokenizer cannot be written ({error})") from error

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        try:
            settings = json.loads((folder / _SETTINGS).read_text())
            weights = load_file(folder / _WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: the image tokenizer cannot be read ({error})") from error
        try:
            ids, image_size = np.asarray(settings["code_ids"], np.int64), int(settings["image_size"])
            vq = _stored_encoder(settings, weights, folder)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / _SETTINGS}: not the settings of an image tokenizer ({type(error).__name__}: {error})"
            ) from error
        decoder = VqDecoder.load(folder) or CodePatches.load(folder)
        return cls(vq, image_size=image_size, code_ids=ids, decoder=decoder)


def _is_code(name: object) -> bool:
    return isinstance(name, str) and name.startswith("IMGIMG")


@torch.inference_mode()
def _features(vq: ChameleonVQVAE, frames: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    """The features that the quantiser gets, [number of codes in all images, E]."""
    # Channels last in memory: in another order, convolutions would round differently, and codebooks would be others.
    pixels = (
        pixels_of(chunk, image_size).contiguous(memory_format=torch.channels_last) for chunk in fit_chunks(frames)
    )
    maps = [vq.quant_conv(vq.encoder(chunk)) for chunk in pixels]
    return torch.cat([feature_map.permute(0, 2, 3, 1).flatten(0, 2) for feature_map in maps]).numpy()


def _geometry(vq: ImageEncoder) -> dict[str, object]:
    """What `_stored_encoder` builds the encoder from, beside its weights."""
    match vq:
        case SquareQuantizer():
            codes, dimensions = vq.centres.shape
            return {"squares": {"codes": codes, "dimensions": dimensions}}
        case ProjectionQuantizer():
            places, codes, dimensions = vq.prototypes.shape
            return {"projections": {"places": places, "codes": codes, "dimensions": dimensions}}
        case _:
            return {"vq_config": known_vq_fields(vq.config.to_dict())}


def _stored_encoder(settings: Mapping[str, Any], weights: Mapping[str, Tensor], place: Path) -> ImageEncoder:
    kind = next((kind for kind in ("squares", "projections") if kind in settings), None)
    if kind is None:
        return stored_vq(settings["vq_config"], weights, place)
    try:
        encoder = (SquareQuantizer if kind == "squares" else ProjectionQuantizer).stored(weights)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{place}: the image tokenizer has another geometry; restore its files") from error
    if _geometry(encoder)[kind] != settings[kind]:
        raise CheckpointError(f"{place}: the image tokenizer has another geometry; restore its files")
    return encoder
