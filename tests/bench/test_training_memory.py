"""The memory of a training, predicted from its experiment."""

import json
from pathlib import Path

import pytest
import torch
from launching import carry_out
from program import TOY
from transformers import ChameleonConfig

from vlatrack.bench.memory import Gpus, Remedy, TrainingMemory, predict_training_memory, remedies, step_of
from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.errors import BackboneError, CheckpointError, SpecError, TokenError
from vlatrack.models.backbones import activations
from vlatrack.models.backbones.four_bits import weights_of
from vlatrack.models.losses.token_losses import logits_at_once_as_on
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import load_spec
from vlatrack.tokens.prompts import VLA_PROMPT
from vlatrack.training.distributed import distribute, process_mesh
from vlatrack.training.memory import MemoryPrediction, peaks_of_step, used_optimizer
from vlatrack.training.memory_tracker import MemoryUse
from vlatrack.training.torch_process_group import process_group_of_one

ROOT = Path(__file__).parents[2]
SIX_LAYERS = "backbone={kind: causal_lm, preset: tiny, sizes: {num_hidden_layers: 6}, max_seq_len: 160}"


def spec_of(*words: str) -> ExperimentSpec:
    return load_spec(TOY, ["action_head.encoder_layers=1", *words])


def predicted(*words: str, extrapolate: bool = True) -> TrainingMemory:
    return predict_training_memory(spec_of(*words), extrapolate=extrapolate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        # Where the peak lies differs: the forward pass, the backward pass of the last layer, that of the first one.
        ["train.memory.keep=none", "train.precision=bf16", "train.batch_size=8"],
        pytest.param(["train.batch_size=8"], marks=pytest.mark.slow),
        pytest.param(["train.micro_batch=1", "train.precision=bf16"], marks=pytest.mark.slow),
    ],
)
def test_two_and_three_layers_tell_exactly_what_six_need(words: list[str]) -> None:
    extrapolated, direct = (predicted(SIX_LAYERS, *words, extrapolate=each) for each in (True, False))
    assert extrapolated == direct


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train.memory.keep=none", "train.precision=bf16"], []])
def test_of_sharded_layers_four_and_five_tell_exactly_what_eight_need(words: list[str]) -> None:
    eight = SIX_LAYERS.replace("6}", "8}")
    both = (predict_training_memory(spec_of(eight, *words), Gpus(2), extrapolate=each) for each in (True, False))
    extrapolated, direct = both
    assert extrapolated == direct


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard: 2", "replicate: 2"])
def test_two_processes_need_what_is_predicted_for_two(tmp_path: Path, parallel: str) -> None:
    words = [SIX_LAYERS, "action_head.encoder_layers=1", "train.batch_size=8", f"train.parallel={{{parallel}}}"]
    file = tmp_path / "peak.json"
    carry_out(Path(__file__).with_name("memory_rank.py"), file, *words)
    prediction = predict_training_memory(load_spec(TOY, words), Gpus(2)).prediction
    assert prediction.peak.total == pytest.approx(json.loads(file.read_text()), rel=0.02)


@pytest.mark.slow
def test_gpus_share_the_samples_the_weights_and_the_optimiser_states() -> None:
    alone = predicted("train.batch_size=8").prediction
    sharded, replicated = (
        predict_training_memory(spec_of("train.batch_size=8", *words), Gpus(1, machines=4))
        for words in (["train.parallel.shard=4"], [])
    )
    assert (sharded.shape, replicated.shape) == ((1, 4), (4, 1))
    assert (alone.rows, sharded.prediction.rows, replicated.prediction.rows) == (8, 2, 2)
    assert sharded.prediction.parameters == alone.parameters
    assert sharded.prediction.whole.weights == pytest.approx(alone.whole.weights / 4, rel=0.01)
    assert sharded.prediction.whole.optimizer_states == pytest.approx(alone.whole.optimizer_states / 4, rel=0.01)
    assert replicated.prediction.whole.weights == alone.whole.weights
    with pytest.raises(SpecError, match=r"^train\.batch_size: 8 samples cannot be dealt out to 9 GPUs; raise it$"):
        predict_training_memory(spec_of("train.batch_size=8"), Gpus(9))
    with pytest.raises(SpecError, match=r"^train\.parallel: shard 3 x replicate 1 is not the 4 processes"):
        predict_training_memory(spec_of("train.parallel.shard=3"), Gpus(4))


def test_what_is_predicted_is_the_policy_that_a_run_would_build() -> None:
    spec = spec_of()
    policy = build_policy(spec, backbone_factory(spec).open())
    parameters = [parameter.numel() for parameter in policy.parameters()]
    prediction = predict_training_memory(spec).prediction
    assert (prediction.parameters, prediction.trainable) == (sum(parameters), sum(parameters))
    assert prediction.whole.weights == prediction.whole.gradients == 4 * sum(parameters)
    assert prediction.whole.optimizer_states == 8 * sum(parameters) + 4 * len(parameters)
    assert prediction.peak.weights == prediction.whole.weights
    assert prediction.peak.optimizer_states == prediction.whole.optimizer_states


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "weight", "state"),
    [
        ([], 2, 4),
        (["train.memory.rounding=kahan"], 2, 6),
        (["train.memory.optimizer_states=8bit"], 2, 2 + 2 * 4 / 256),
        (["train.memory.parameters=fp32", "train.memory.optimizer_states=bf16"], 4, 4),
    ],
)
def test_what_is_stored_in_fewer_bits_needs_less(words: list[str], weight: int, state: float) -> None:
    """Bytes of each parameter; with 8 bits a few small tensors keep 4."""
    bf16 = ["train.precision=bf16", "train.memory.parameters=bf16", "backbone.preset=small"]
    prediction = predicted(*bf16, *words).prediction
    assert prediction.whole.weights == prediction.whole.gradients == weight * prediction.parameters
    assert prediction.whole.optimizer_states / prediction.parameters == pytest.approx(state, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["backbone.adapter={kind: lora, base: bf16}", "train.precision=bf16"],
        ["backbone.adapter={kind: dora}"],
        ["backbone.adapter={kind: dora, base: 4bit}", "train.precision=bf16"],
        ["train.freeze=['backbone.*']"],
        ["train.freeze=['backbone.chameleon.model.layers.0.*', action_head.queries]"],
    ],
)
def test_what_is_frozen_needs_no_gradients_and_no_states(words: list[str]) -> None:
    spec = spec_of(*words)
    policy = build_policy(spec, backbone_factory(spec).open())
    held = sum(tensor.numel() * tensor.element_size() for tensor in weights_of(policy))
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    prediction = predict_training_memory(spec).prediction
    assert (prediction.trainable, prediction.whole.weights) == (trained, held)
    assert prediction.peak.weights == held
    assert prediction.whole.gradients == 4 * trained
    assert 8 * trained <= prediction.whole.optimizer_states < 8 * trained + 1000
    assert prediction.peak.gradients == prediction.whole.gradients


@pytest.mark.slow
def test_gpus_share_what_adapters_leave_frozen_but_for_layers_in_four_bits() -> None:
    words = ["backbone.preset=small", "train.precision=bf16"]
    for base, bits in (("bf16", 8), ("4bit", 4.17)):
        adapted = spec_of(*words, f"backbone.adapter={{kind: lora, base: {base}}}")
        alone, sharded = (predict_training_memory(adapted, Gpus(number)).prediction for number in (1, 2))
        blocks = 8 * (4 * 512**2 + 3 * 512 * 1536)
        others = alone.parameters - alone.trainable - blocks
        held = bits / 8 * blocks + 2 * others / 2 + 4 * alone.trainable / 2
        assert sharded.whole.weights == pytest.approx(held, rel=0.01)


@pytest.mark.slow
def test_a_row_is_as_long_as_the_longest_sample_that_the_experiment_can_make() -> None:
    short = predicted("backbone.max_seq_len=400", "data.use_state=false", "data.samples=[vla]")
    # Begin, prompt, instruction of 128 bytes, an image of 2 x 2 codes, end, 3 actions of 2 numbers, end.
    assert short.prediction.tokens == 1 + len(VLA_PROMPT.format(instruction="")) + 128 + 10 + 1 + 3 * 4 + 1
    assert (short.prediction.rows, short.micro_batches) == (8, 2)
    assert short.longest_row.endswith("1 image of 32 pixels, 3 actions and an instruction of 128 characters")
    world = predicted("backbone.max_seq_len=4000", "data.history=2", "tokenizer.image.image_size=256")
    assert world.longest_row == "a world_model sample of 3 images of 256 pixels"
    assert predicted().prediction.tokens == 160
    assert predicted().longest_row.endswith("as long as backbone.max_seq_len allows")


def test_an_experiment_whose_samples_never_fit_is_refused() -> None:
    with pytest.raises(TokenError, match=r"backbone\.max_seq_len is 30"):
        predicted("backbone.max_seq_len=30")


def test_gradients_that_accumulate_are_there_during_the_forward_pass() -> None:
    at_once, accumulating = predicted("train.batch_size=8"), predicted("train.batch_size=16")
    assert accumulating.prediction.rows == at_once.prediction.rows == 8
    gradients = accumulating.prediction.whole.gradients
    assert accumulating.prediction.peak.total > at_once.prediction.peak.total + gradients // 2


def test_remedies_have_the_largest_micro_batch_that_fits_and_the_fastest_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def simple(spec: ExperimentSpec, gpus: Gpus) -> TrainingMemory:
        """5 GiB, and for each row 4 GiB, half of it with bf16, half of it with checkpointing."""
        train = spec.train
        halved = (train.precision == "bf16") + (train.memory.keep == "none")
        peak = MemoryUse(activations=(5 << 30) + ((train.micro_batch or 0) << 32 >> halved))
        return TrainingMemory(MemoryPrediction(1, 1, MemoryUse(), peak, 1, 1), (1, 1), 1, "")

    monkeypatch.setattr("vlatrack.bench.memory.predict_training_memory", simple)

    def found(limit_gib: int, *words: str) -> list[str]:
        return [" ".join(each.words) for each in remedies(lambda more: spec_of(*words, *more), limit_gib << 30)]

    eight = ("train.micro_batch=8", "train.batch_size=64")
    bf16, checkpointing = "train.precision=bf16", "train.memory.keep=none"
    assert found(22, *eight) == ["train.micro_batch=4", bf16]
    assert found(14, *eight) == [
        "train.micro_batch=2",
        f"{bf16} train.micro_batch=4",
        f"{bf16} {checkpointing}",
    ]
    assert found(9, *eight, bf16, checkpointing) == ["train.micro_batch=2"]
    assert found(6, *eight) == []


def test_what_is_offloaded_comes_after_what_costs_less_time_and_parameters_where_nothing_else_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def simple(spec: ExperimentSpec, gpus: Gpus) -> TrainingMemory:
        """1 GiB, and 8 GiB of weights and for each row 2 GiB of activations, a half of which can be recomputed, and the
        rest wait on the host."""
        memory, rows = spec.train.memory, spec.train.micro_batch or 0
        asked.append(memory.offload)
        of_a_row = 0 if memory.offload == "activations" else 1 if memory.keep == "none" else 2
        held = MemoryUse(weights=0 if memory.offload == "parameters" else 8 << 30)
        peak = MemoryUse(weights=held.weights, activations=rows * of_a_row << 30)
        return TrainingMemory(MemoryPrediction(1, 1, held, peak, 1, 1), (1, 1), 1, "")

    monkeypatch.setattr("vlatrack.bench.memory.predict_training_memory", simple)

    def found(limit_gib: int, *words: str) -> list[Remedy]:
        words = ("train.micro_batch=8", "train.batch_size=8", "train.precision=bf16", *words)
        return list(remedies(lambda more: spec_of(*words, *more), limit_gib << 30))

    keep, parameters = "train.memory.keep=none", "train.memory.offload=parameters"
    assert [" ".join(each.words) for each in found(15)] == [
        "train.micro_batch=2",
        f"{keep} train.micro_batch=4",
        f"{keep} train.memory.offload=activations",
    ]
    assert not any(each.takes_long for each in found(15))
    asked.clear()
    (only,) = found(8)  # the weights alone are too large, so that nothing but this is tried further
    assert only.words == (keep, parameters, "train.micro_batch=4")
    assert only.takes_long
    assert asked == ["none", *["parameters"] * 4]
    assert found(8, "optim.kind=muon") == []
    assert [each.words for each in found(6, "train.memory={keep: none, offload: activations}")] == [
        (parameters, "train.micro_batch=4")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("offload", ["none", "parameters"])
def test_gradients_in_fp32_are_counted(offload: str) -> None:
    bf16 = ["train.precision=bf16", "train.memory.parameters=bf16", f"train.memory.offload={offload}"]
    both = [predicted(*bf16, *words).prediction for words in ([], ["train.memory.gradients=fp32"])]
    plain, exact = [each.whole if offload == "none" else each.host for each in both]
    assert (plain.gradients, exact.gradients) == (plain.weights, 2 * plain.weights)
    assert both[0].peak.total <= both[1].peak.total


@pytest.mark.slow
def test_averages_of_the_weights_are_counted() -> None:
    plain, averaged = predicted(), predicted("train.ema={decay: 0.99}")
    size = 4 * plain.prediction.parameters
    assert averaged.prediction.whole.averages == averaged.prediction.peak.averages == size
    assert averaged.on_gpu == plain.on_gpu + size


@pytest.mark.slow
def test_activations_that_are_offloaded_are_on_the_host_and_not_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.batch_size=8", "train.memory.keep=none"]
    plain, offloading = (
        predicted(SIX_LAYERS, *words, f"train.memory.offload={each}") for each in ("none", "activations")
    )
    on_host = offloading.prediction.host.activations
    assert offloading.prediction.host.total == on_host
    at_least = 6 * 8 * 160 * 64 * 4  # the inputs of six layers, 64 wide
    assert at_least < on_host < 2 * at_least
    saved = plain.prediction.peak.total - offloading.prediction.peak.total
    assert 0 < saved <= on_host
    assert offloading == predicted(SIX_LAYERS, *words, "train.memory.offload=activations", extrapolate=False)
    # The host's memory as it is in an actual step, all copies of which live until the backward pass.
    copied: list[int] = []
    to_host = activations._to_host

    def noting(kept: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
        packed = to_host(kept)
        copied.append(packed[1].nbytes if packed[1] is not kept else 0)
        return packed

    monkeypatch.setattr(activations, "_to_host", noting)
    step = step_of(spec_of(SIX_LAYERS, *words, "train.memory.offload=activations"))
    step.build().train()(step.batch)
    assert sum(copied) == pytest.approx(on_host, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["train.memory.keep=none", "train.precision=bf16", "train.micro_batch=2"]])
def test_parameters_that_are_offloaded_are_on_the_host_and_not_on_the_gpu(words: list[str]) -> None:
    words = [SIX_LAYERS, "train.batch_size=8", "train.ema={decay: 0.99}", *words]
    plain, offloading = (predicted(*words, f"train.memory.offload={each}") for each in ("none", "parameters"))
    assert offloading.prediction.host == plain.prediction.whole
    assert offloading.prediction.whole.total == offloading.prediction.peak.optimizer_states == 0
    assert offloading.prediction.peak.total < plain.prediction.peak.total
    direct = predicted(*words, "train.memory.offload=parameters", extrapolate=False)
    assert offloading == direct
    # What torch's tracker sees of an actual step.
    step = step_of(load_spec(TOY, ["action_head.encoder_layers=1", *words, "train.memory.offload=parameters"]))
    with process_group_of_one(needed=True):
        policy, settings = step.build().train(), step.settings
        distribute(policy, process_mesh((1, 1), torch.device("cpu"), offloads=True), offload=True)
        optimizer = used_optimizer(policy, settings)
        if not settings.accumulates:
            optimizer.zero_grad(set_to_none=True)
        with logits_at_once_as_on("cuda"):
            peaks, _ = peaks_of_step(policy, optimizer, step.batch, settings)
    measured = max(use.total for use in peaks.values())
    assert offloading.prediction.peak.total == pytest.approx(measured, rel=0.02)


def test_a_checkpoint_needs_no_weights_only_its_configuration(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    ChameleonConfig(vocab_size=16640, num_key_value_heads=2, **sizes).save_pretrained(tmp_path)
    Tokenizer(WordLevel({"[UNK]": 16500}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    backbone = f"backbone={{init: pretrained, checkpoint: {tmp_path}, max_seq_len: 200}}"
    assert predicted(backbone).prediction.parameters > 2 * 16640 * 32


@pytest.mark.parametrize("kind", ["chameleon", "causal_lm"])
def test_a_checkpoint_that_is_missing_is_told_in_one_line_with_words_that_help(kind: str) -> None:
    backbone = f"backbone={{kind: {kind}, init: pretrained, checkpoint: not/here/at-all, max_seq_len: 4000}}"
    with pytest.raises(CheckpointError, match=r"^not/here/at-all: no such checkpoint folder; [^\n]+$") as raised:
        predicted(backbone)
    words = [word for word in str(raised.value).split() if "=" in word]
    assert load_spec(TOY, [backbone, *words]).backbone.kind == kind


def test_a_loss_term_that_reads_values_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reading_loss.py").write_text(
        "from vlatrack.metrics.losses import LossMetric\n"
        "from vlatrack.models.losses.base import LossTerm\n"
        "class Reading(LossTerm):\n"
        "    metric = LossMetric('reading', 'reads a value', 'nats')\n"
        "    def count(self, batch): return len(batch.targets)\n"
        "    def total(self, inputs): return inputs.nll.sum() * inputs.nll[0].item()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackboneError, match=r"^the memory cannot be predicted: [^\n]+$"):
        predicted("loss.terms=[{kind: custom, target: 'reading_loss:Reading', weight: 1.0}]")


def test_a_backbone_of_ones_own_is_followed_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("vlatrack.bench.memory.predict_memory", lambda *_, extrapolate: asked.append(extrapolate))
    step = step_of(spec_of())
    monkeypatch.setattr("vlatrack.bench.memory.step_of", lambda *_: step)
    predicted("backbone={kind: custom, target: 'some:Backbone'}")
    predicted()
    assert asked == [False, True]
