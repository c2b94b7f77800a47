"""Trainings that start from a checkpoint: a Hugging Face Chameleon or Qwen, and the reference's own state dict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from program import TOY, Program, finish_of
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.data.statistics import NormStats
from vlatrack.errors import VlatrackError
from vlatrack.models.backbones.pretrained import open_pretrained
from vlatrack.runner.evaluate import evaluate_run
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.tokens.layout import CHAMELEON_PREFIX, TokenLayout
from vlatrack.training.checkpoint.contents import stored_weights

CODES = 6
VQ = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 1, 1],
    "num_res_blocks": 1,
    "num_embeddings": CODES,
    "embed_dim": 16,
    "latent_channels": 16,
    "resolution": 32,
}


def _image_token(code: int) -> str:
    """Chameleon's name of an image code: its digits as letters."""
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chameleon of the library's own making, with its image encoder and a text tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    # Codes in reverse order, so that a mapping by position instead of by name would show.
    vocabulary = {"<image>": 8711, **{_image_token(code): 4 + CODES - 1 - code for code in range(CODES)}}
    config = ChameleonConfig(
        vocab_size=16640,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=200,
        vq_config=VQ,
        vocabulary_map=vocabulary,
    )
    torch.manual_seed(1)
    ChameleonForConditionalGeneration(config).save_pretrained(folder)
    _save_tokenizer(folder, {"[UNK]": 16500, "square": 16501})
    return folder


def _save_tokenizer(folder: Path, words: dict[str, int]) -> None:
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _spec(checkpoint: Path, *overrides: str, kind: str = "chameleon"):
    backbone = f"backbone={{kind: {kind}, init: pretrained, checkpoint: {checkpoint}, max_seq_len: 200}}"
    return load_spec(TOY, [backbone, "train.max_steps=1", *overrides])


def test_a_run_starts_from_a_hugging_face_chameleon(tmp_path, chameleon) -> None:
    """With a learning rate of next to nothing, the weights after one step are those of the checkpoint."""
    run = run_experiment(_spec(chameleon, "optim.lr=1e-12", "optim.weight_decay=0"), runs=tmp_path / "runs")
    trained = load_file(run.checkpoints.find("last") / "policy.safetensors")
    original = load_file(chameleon / "model.safetensors")
    for name, value in original.items():
        if not name.startswith("model.vqmodel."):
            torch.testing.assert_close(trained[f"backbone.chameleon.{name}"], value, rtol=0, atol=1e-8)


def test_the_checkpoints_image_tokenizer_maps_codes_by_their_names(chameleon) -> None:
    tokenizer = _image_tokenizer(chameleon, TokenLayout())
    frames = torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8).numpy()
    model = ChameleonForConditionalGeneration.from_pretrained(chameleon)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = model.model.get_image_tokens(pixels)
    assert tokenizer.encode(frames).reshape(8, -1).tolist() == expected.tolist()


def test_a_checkpoint_without_an_image_tokenizer_is_refused(qwen) -> None:
    with pytest.raises(VlatrackError, match=rf"{qwen}: no image tokenizer in it"):
        _image_tokenizer(qwen, TokenLayout())


def test_another_backbone_has_the_same_codes_under_its_own_ids(chameleon) -> None:
    frames = torch.randint(0, 255, (8, 32, 32, 3), dtype=torch.uint8).numpy()
    layout = TokenLayout.after(100, pad=0, bos=1)
    of_chameleon, of_other = (_image_tokenizer(chameleon, ids).encode(frames) for ids in (TokenLayout(), layout))
    assert (of_other - layout.first_image_code).tolist() == (of_chameleon - 4).tolist()


def _image_tokenizer(folder: Path, layout: TokenLayout) -> ImageTokenizer:
    opened = open_pretrained(str(folder))
    tensors = opened.tensors(CHAMELEON_PREFIX)
    return ImageTokenizer.from_chameleon(opened.config, tensors, place=folder, image_size=32, layout=layout)


@pytest.mark.slow
def test_a_run_starts_from_the_references_state_dict_with_its_head(tmp_path, chameleon) -> None:
    """The reference writes .pth, shares one q/k norm among the heads, and brings the ActionHead."""
    first = run_experiment(_spec(chameleon), runs=tmp_path / "runs")
    ours = load_file(first.checkpoints.find("last") / "policy.safetensors")
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((chameleon / name).read_bytes())
    state = {
        name: value[:1] if "q_norm" in name or "k_norm" in name else value
        for name, value in load_file(chameleon / "model.safetensors").items()
    }
    shape = ours["action_head.queries"].shape
    queries = torch.full((1, shape.numel()), 0.25)
    torch.save({"model": {**state, **_reference_head(ours), _QUERIES: queries}}, folder / "model.pth")
    run = run_experiment(_spec(folder, "optim.lr=1e-12", "optim.weight_decay=0"), runs=tmp_path / "runs")
    trained = load_file(run.checkpoints.find("last") / "policy.safetensors")
    torch.testing.assert_close(trained["action_head.queries"], torch.full(shape, 0.25))
    torch.testing.assert_close(trained["action_head.readout.linear_out.bias"], ours[_OUT_BIAS], rtol=0, atol=1e-8)


def test_a_checkpoint_of_another_action_geometry_is_refused(tmp_path, chameleon) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((chameleon / name).read_bytes())
    torch.save({_QUERIES: torch.zeros(1, 5 * 7 * 32)}, folder / "model.pth")
    with pytest.raises(VlatrackError, match=r"geometry \(chunk, action or model size\) is different"):
        run_experiment(_spec(folder), runs=tmp_path / "runs")


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path, chameleon) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    config = json.loads((chameleon / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((chameleon / "model.safetensors").read_bytes())
    with pytest.raises(VlatrackError, match=r"tokenizer\.json: no such file"):
        run_experiment(_spec(folder), runs=tmp_path / "runs")


def _with_config(chameleon: Path, folder: Path, **changes) -> Path:
    shutil.copytree(chameleon, folder)
    config = json.loads((chameleon / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "not a Chameleon's geometry: .*'hidden_size' expected int"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, but a Chameleon has an output layer of its own"),
        ({"vocab_size": 16000}, "its vocabulary has 16000 ids, but image, action, state and text ids go up to 16501"),
    ],
)
def test_a_config_that_makes_no_policy_is_one_clear_line(tmp_path, chameleon, changes, message) -> None:
    spec = _spec(_with_config(chameleon, tmp_path / "folder", **changes))
    with pytest.raises(VlatrackError, match=message) as caught:
        build_policy(spec, backbone_factory(spec).open())
    assert len(str(caught.value).splitlines()) == 1


def test_a_chameleon_from_scratch_has_room_for_the_words_of_its_tokenizer(tmp_path, chameleon) -> None:
    folder = _with_config(chameleon, tmp_path / "folder")
    _save_tokenizer(folder, {"[UNK]": 3, "square": 20_000})
    spec = load_spec(TOY, [f"tokenizer.checkpoint={folder}"])
    source = backbone_factory(spec).open()
    policy = build_policy(spec, source)
    assert source.text.encode("square") == [20_000]
    assert len(policy.backbone.output_layer) == 20_001


def test_a_model_that_is_no_chameleon_is_refused(tmp_path, chameleon) -> None:
    folder = _with_config(chameleon, tmp_path / "llama", model_type="llama")
    with pytest.raises(VlatrackError, match="a llama model, not a Chameleon"):
        run_experiment(_spec(folder), runs=tmp_path / "runs")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of the library's own making, its output layer tied to the embedding, with a text tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    config = Qwen3Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=100,
        bos_token_id=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(2)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    _save_tokenizer(folder, {"[UNK]": 3, "square": 4})
    return folder


@pytest.mark.slow
def test_a_run_starts_from_a_qwen_with_the_image_tokenizer_of_a_chameleon(tmp_path, qwen, chameleon) -> None:
    spec = _spec(qwen, "optim.lr=1e-12", "optim.weight_decay=0", f"tokenizer.checkpoint={chameleon}", kind="causal_lm")
    run = run_experiment(spec, runs=tmp_path / "runs")
    trained = load_file(run.checkpoints.find("last") / "policy.safetensors")
    original = load_file(qwen / "model.safetensors")
    embedding = trained["backbone.decoder.embed_tokens.weight"]
    assert len(embedding) == TokenLayout.after(60, pad=1, bos=1).vocabulary_size
    torch.testing.assert_close(embedding[:60], original.pop("model.embed_tokens.weight"), rtol=0, atol=1e-8)
    for name, value in original.items():
        ours = trained[f"backbone.decoder.{name.removeprefix('model.')}"]
        torch.testing.assert_close(ours, value, rtol=0, atol=1e-8)
    codes = ImageTokenizer.load(run.tokenizer).encode(np.zeros((1, 32, 32, 3), np.uint8))
    assert ((codes >= 60) & (codes < 60 + CODES)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chameleon", "causal_lm"])
def test_a_run_resumes_and_evaluates_when_its_pretrained_folder_is_gone(tmp_path, request, monkeypatch, kind) -> None:
    """The checkpoint has it all: no folder, no hub, not the run's own tokenizer, no statistics computed anew."""
    folder = tmp_path / "pretrained"
    shutil.copytree(request.getfixturevalue({"chameleon": "chameleon", "causal_lm": "qwen"}[kind]), folder)
    run = run_experiment(_spec(folder, "train.max_steps=2", kind=kind), runs=tmp_path / "runs")
    logged = json.loads(run.log_files["val_ind"].read_text())
    shutil.rmtree(folder)
    shutil.rmtree(run.tokenizer)

    def computed_anew(*_: object, **__: object) -> None:
        raise AssertionError("the checkpoint has the statistics")

    monkeypatch.setattr(NormStats, "from_episodes", computed_anew)
    monkeypatch.setattr("huggingface_hub.snapshot_download", computed_anew)
    evaluation = evaluate_run(run.path, checkpoint="last")
    assert evaluation.metrics["val_ind_closs"] == pytest.approx(logged["val_closs"], rel=1e-6)
    resume_run(run.path, overrides=["train.max_steps=3"])
    assert finish_of(run.path)["status"] == "FINISHED"
    assert run.checkpoints.find("last").name == "step-00000003"


_QUERIES = "action_head.action_token_embeddings.weight"
_OUT_BIAS = "action_head.readout.linear_out.bias"
_REFERENCE_NAMES = (
    ("action_head.projection.", "action_head.hidden_projection."),
    ("action_head.encoder.", "action_head.transformer_encoder."),
    ("action_head.readout.norm_in.", "action_head.output_projection.model.layer_norm1."),
    ("action_head.readout.linear_in.", "action_head.output_projection.model.fc1."),
    ("action_head.readout.norm_out.", "action_head.output_projection.model.layer_norm2."),
    ("action_head.readout.linear_out.", "action_head.output_projection.model.fc2."),
)


def _reference_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our head under the reference's names."""
    renamed = {}
    for name, value in state.items():
        for ours, theirs in _REFERENCE_NAMES:
            if name.startswith(ours):
                renamed[name.replace(ours, theirs)] = value
        if name.startswith("action_head.readout.blocks."):
            number, rest = name.removeprefix("action_head.readout.blocks.").split(".", 1)
            renamed[f"action_head.output_projection.model.mlp_resnet_blocks.{number}.ffn.{rest}"] = value
    return renamed


@pytest.mark.slow
def test_two_processes_start_from_a_checkpoint_and_resume_bitwise(program: Program, chameleon: Path) -> None:
    """Neither of them ever holds the whole policy; see also tests/builders/test_unfilled.py."""
    backbone = f"backbone={{init: pretrained, checkpoint: {chameleon}, residual_dropout: 0.1, max_seq_len: 200}}"
    steps = ("train.max_steps=4", "train.checkpoint.every_steps=2", "evaluate.open_loop=null")
    done = program.run_many("run", TOY, backbone, *steps)
    assert done.returncode == 0, done.stderr
    run = program.only_run()
    checkpoint = run / "checkpoints" / "step-00000004"
    expected = {piece.name: piece.read() for piece in stored_weights(checkpoint).pieces()}
    done = program.run_many("run", "--resume", run, "--checkpoint", "step-00000002")
    assert done.returncode == 0, done.stderr
    resumed = {piece.name: piece.read() for piece in stored_weights(checkpoint).pieces()}
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
