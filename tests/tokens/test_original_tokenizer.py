"""Chameleon's tokenizers in their original files: vqgan.ckpt, vqgan.yaml and text_tokenizer.json."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from vlatrack.errors import CheckpointError
from vlatrack.models.backbones.pretrained import open_pretrained
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.tokens.layout import CHAMELEON_PREFIX, TokenLayout
from vlatrack.tokens.text import PretrainedTextTokenizer
from vlatrack.tokens.vq_decoder import VqDecoder

TINY = {"ch": 32, "ch_mult": [1, 1, 2, 2, 2], "num_res_blocks": 1, "z_channels": 16, "resolution": 64}
TRUE = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "z_channels": 256, "resolution": 512}


def original_files(folder: Path, sizes: dict, *, codes: int, dimensions: int) -> ChameleonVQVAE:
    """Random weights in the original files, as facebookresearch/chameleon reads them; the same in transformers' class.

    A Lightning checkpoint also has the networks of its training, and what its trainer remembers.
    """
    ddconfig = {**sizes, "double_z": False, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0}
    params = {"embed_dim": dimensions, "n_embed": codes, "ddconfig": ddconfig, "ckpt_path": None, "lossconfig": {}}
    config = {
        "base_channels": sizes["ch"],
        "channel_multiplier": sizes["ch_mult"],
        "num_res_blocks": sizes["num_res_blocks"],
        "latent_channels": sizes["z_channels"],
        "resolution": sizes["resolution"],
        "embed_dim": dimensions,
        "num_embeddings": codes,
    }
    torch.manual_seed(0)
    vq, decoder = ChameleonVQVAE(ChameleonVQVAEConfig(**config)), VqDecoder(config)
    with torch.inference_mode():  # a codebook of what the encoder gives, so that an image has several codes
        noise = torch.rand(1 if sizes is TRUE else 8, 3, 64, 64) * 2 - 1
        features = vq.quant_conv(vq.encoder(noise)).permute(0, 2, 3, 1).flatten(0, 2)
    drawn = features[torch.arange(codes) % len(features)] + features.std() * torch.randn(codes, dimensions) / 4
    vq.quantize.embedding.weight.data.copy_(drawn)
    weights = {name: value for name, value in vq.state_dict().items() if not name.startswith("decoder.")}
    weights |= {name: value for name, value in decoder.state_dict().items() if name.startswith("decoder.")}
    trained = {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"state_dict": {**weights, **trained}, "epoch": 3, "global_step": 7}, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": "x.VQModel", "params": params}}))
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"IMGIMG{str(code).translate(letters)}Z": 4 + (code * 7 + 3) % codes for code in range(codes)}
    Tokenizer(WordLevel({"[UNK]": 0, **names, "open": 16500}, unk_token="[UNK]")).save(
        str(folder / "text_tokenizer.json")
    )
    return vq.eval()


def opened(folder: Path, image_size: int) -> ImageTokenizer:
    found = open_pretrained(str(folder))
    return ImageTokenizer.from_chameleon(
        found.config, found.tensors(CHAMELEON_PREFIX), place=folder, image_size=image_size, layout=TokenLayout()
    )


def assert_codes_are_those_of(vq: ChameleonVQVAE, tokenizer: ImageTokenizer, frames: np.ndarray, codes: int) -> None:
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = vq.encode(pixels, return_dict=True).image_tokens.view(len(frames), -1).numpy()
    assert len(np.unique(expected)) > 3, "not all of an image is alike"
    ids = tokenizer.encode(frames).reshape(len(frames), -1)
    assert (ids == 4 + (expected * 7 + 3) % codes).all()


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_the_original_files_give_the_codes_of_transformers_under_their_names_in_the_vocabulary(tmp_path, frames):
    vq = original_files(tmp_path, TINY, codes=64, dimensions=16)
    tokenizer = opened(tmp_path, 64)
    assert_codes_are_those_of(vq, tokenizer, frames, 64)
    assert PretrainedTextTokenizer.read(tmp_path).encode("open") == [16500]
    assert open_pretrained(str(tmp_path), with_weights=False).files == ()


def test_the_decoder_comes_along_and_is_saved_with_the_tokenizer(tmp_path, frames):
    original_files(tmp_path, TINY, codes=64, dimensions=16)
    tokenizer = opened(tmp_path, 64)
    tokenizer.save(tmp_path / "saved")
    again = ImageTokenizer.load(tmp_path / "saved")
    ids = tokenizer.encode(frames)
    shown = tokenizer.decode(ids)
    assert shown.shape == frames.shape
    assert shown.std() > 1
    assert (again.decode(ids) == shown).all()
    assert (again.decode(ids[1:2]) == shown[1:2]).all()
    assert again.decoder is not None
    assert again.decoder.description == "the VQ-VAE's own decoder"
    file = tmp_path / "saved" / "image_decoder.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"image_decoder\.safetensors: the image decoder cannot be read"):
        ImageTokenizer.load(tmp_path / "saved")


@pytest.mark.slow
def test_the_original_files_at_their_true_size(tmp_path):
    vq = original_files(tmp_path, TRUE, codes=8192, dimensions=256)
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert_codes_are_those_of(vq, opened(tmp_path, 64), frames, 8192)


def test_a_checkpoint_that_holds_more_than_tensors_is_refused_with_the_remedy(tmp_path):
    original_files(tmp_path, TINY, codes=64, dimensions=16)
    state = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": state, "callbacks": {threading.Thread: {}}}, tmp_path / "vqgan.ckpt")
    with pytest.raises(CheckpointError, match=r"vqgan\.ckpt: refused, it holds more.*save its state dict") as caught:
        opened(tmp_path, 64)
    assert len(str(caught.value).splitlines()) == 1


def _yaml_without_embed_dim(folder: Path) -> None:
    (folder / "vqgan.yaml").write_text("model: {params: {ddconfig: {}}}")


def _yaml_of_monstrous_size(folder: Path) -> None:
    text = (folder / "vqgan.yaml").read_text()
    (folder / "vqgan.yaml").write_text(text.replace("n_embed: 64", f"n_embed: {10**15}"))


def _yaml_of_another_geometry(folder: Path) -> None:
    text = (folder / "vqgan.yaml").read_text()
    (folder / "vqgan.yaml").write_text(text.replace("ch: 32", "ch: 48"))


def _vocabulary_without_a_code(folder: Path) -> None:
    content = json.loads((folder / "text_tokenizer.json").read_text())
    content["model"]["vocab"].pop("IMGIMGBCZ")
    (folder / "text_tokenizer.json").write_text(json.dumps(content))


def _vocabulary_of_another_kind(folder: Path) -> None:
    (folder / "text_tokenizer.json").write_text('{"model": {"vocab": [1, 2]}}')


def _truncated(folder: Path) -> None:
    (folder / "vqgan.ckpt").write_bytes((folder / "vqgan.ckpt").read_bytes()[:-1000])


def _no_weights(folder: Path) -> None:
    (folder / "vqgan.ckpt").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_yaml_without_embed_dim, r"vqgan\.yaml: not the geometry of a VQ-VAE"),
        (_yaml_of_monstrous_size, "another geometry"),
        (_yaml_of_another_geometry, "another geometry"),
        (_vocabulary_without_a_code, "does not name all 64 image codes"),
        (_vocabulary_of_another_kind, r"text_tokenizer\.json: no vocabulary"),
        (_truncated, r"vqgan\.ckpt: unreadable or truncated"),
        (_no_weights, r"vqgan\.ckpt: no such file"),
    ],
)
def test_original_files_that_are_damaged_are_one_line(tmp_path, damage, message):
    original_files(tmp_path, TINY, codes=64, dimensions=16)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, 64)
    assert len(str(caught.value).splitlines()) == 1
