"""The backbone of docs/write-a-backbone.md, which lies outside vlatrack: training, checkpoints, and its mistakes."""

import json

import pytest
import torch
from program import TOY
from recipes import module_of
from safetensors.torch import load_file

from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.errors import BackboneError, SpecError
from vlatrack.models.backbones.base import Backbone, BackboneFactory, BackboneSource, Geometry
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer


class TorchBackbone(module_of("write-a-backbone.md", "my_backbone.py").SmallDecoder):
    """The page's, as a class of this module."""


def toy(target: str = "TorchBackbone", options: str = "{layers: 2, dropout: 0.1}"):
    return load_spec(
        TOY,
        [
            f"backbone={{kind: custom, target: '{__name__}:{target}', options: {options}, max_seq_len: 160}}",
            "train.max_steps=2",
            "train.memory.keep=none",
        ],
    )


@pytest.mark.slow
def test_a_backbone_of_another_package_trains_and_is_built_again_from_what_is_stored(tmp_path) -> None:
    spec = toy()
    run = run_experiment(spec, runs=tmp_path)
    trained = load_file(run.checkpoints.find("last") / "policy.safetensors")
    initial = build_policy(spec, backbone_factory(spec).open()).state_dict()
    assert trained.keys() == initial.keys()
    unchanged = [name for name, value in initial.items() if torch.equal(value, trained[name])]
    assert unchanged == []

    geometry = json.loads(json.dumps(backbone_factory(spec).open().build().geometry()))
    changed = toy(options="{layers: 5, dropout: 0.3}")
    backbone = backbone_factory(changed).from_geometry(geometry)
    backbone.load_state_dict({n.removeprefix("backbone."): v for n, v in trained.items() if n.startswith("backbone.")})
    assert len(backbone.blocks) == 2
    assert backbone.blocks[0].dropout.p == 0.3


class WordFactory(BackboneFactory):
    """One that brings a text tokenizer."""

    def __init__(self, *, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len

    def open(self) -> BackboneSource:
        return BackboneSource(
            build=lambda: TorchBackbone(max_seq_len=self.max_seq_len), text=ByteTokenizer(TokenLayout(byte_base=9))
        )

    def from_geometry(self, geometry: Geometry) -> Backbone:
        return TorchBackbone(**geometry)


def test_a_factory_of_another_package_brings_its_own_tokenizer() -> None:
    source = backbone_factory(toy("WordFactory", options="{}")).open()
    assert source.text.encode("a") == [9 + ord("a")]
    assert isinstance(source.build(), TorchBackbone)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "TorchBackbone",
            "{width: 3}",
            r"backbone\.options: TorchBackbone: got an unexpected keyword argument 'width'",
        ),
        ("toy", "{}", r"backbone\.target: toy is not a class derived from Backbone"),
        ("Nothing", "{}", "test_backbone_recipe:Nothing: cannot be loaded"),
    ],
)
def test_a_target_that_is_no_backbone_is_refused_in_one_line(target, options, message) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        backbone_factory(toy(target, options)).open()
    assert len(str(caught.value).splitlines()) == 1


class AnotherWidth(TorchBackbone):
    def geometry(self) -> Geometry:
        return {"hidden": 32}


class NoJson(TorchBackbone):
    def geometry(self) -> Geometry:
        return {"dtype": torch.float32}


@pytest.mark.parametrize(
    ("name", "why"), [("AnotherWidth", "unexpected keyword argument 'hidden'"), ("NoJson", "not JSON serializable")]
)
def test_a_geometry_of_which_no_backbone_can_be_made_is_told_before_training(name: str, why: str) -> None:
    with pytest.raises(BackboneError, match=rf"backbone {name}: geometry\(\) must be JSON values .*{why}"):
        backbone_factory(toy(name, options="{}")).open().build()
