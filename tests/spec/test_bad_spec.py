"""Every mistake in an experiment is one line with place, path and remedy."""

import re
from pathlib import Path

import pytest

from vlatrack.errors import SpecError
from vlatrack.spec.load import load_spec, parse_backends

GOOD = """\
name: demo
backbone: {init: scratch, preset: tiny}
action_head:
  time_horizon: 5
  action_dim: 4
tokenizer:
  bins: 256
data:
  cameras: [front]
  train:
    kind: lerobot
    path: some/data
optim:
  lr: 1e-4
train:
  epochs: 3
tracking:
  backends:
    - kind: mlflow
    - kind: wandb
"""

# What is replaced in GOOD, by what, and the one line that must come of it.
BAD_FILES = {
    "unknown key": ("  lr: 1e-4", "  lrr: 1e-4", "14  optim.lrr: unknown key (did you mean 'lr'?)"),
    "key of another block": ("name: demo", "name: demo\nlr: 1", "2  lr: unknown key (did you mean 'optim.lr'?)"),
    "key like no other": (
        "  lr: 1e-4",
        "  zebra: 1",
        "14  optim.zebra: unknown key (known here: kind, lr, min_lr, weight_decay, betas, eps, clip_grad, groups, "
        "schedule, warmup_epochs, warmup_steps, decay_epochs, decay_steps, decay_shape)",
    ),
    "key of another kind": (
        "kind: wandb",
        "kind: wandb\n      tracking_uri: x",
        "21  tracking.backends.1.tracking_uri: unknown key "
        "(known here: kind, naming, project, entity, mode, copy_checkpoints, copy_up_to_mb)",
    ),
    "text for an integer": ("epochs: 3", "epochs: many", "16  train.epochs: expected an integer, got 'many'"),
    "quoted number": ("epochs: 3", "epochs: '3'", "16  train.epochs: expected an integer, got '3'"),
    "true for an integer": ("epochs: 3", "epochs: true", "16  train.epochs: expected an integer, got true"),
    "fraction for an integer": ("epochs: 3", "epochs: 2.5", "16  train.epochs: expected an integer, got 2.5"),
    "null where nothing else goes": ("epochs: 3", "epochs:", "16  train.epochs: expected an integer, got null"),
    "text for a number": ("lr: 1e-4", "lr: fast", "14  optim.lr: expected a number, got 'fast'"),
    "text for a list": ("[front]", "front", "9  data.cameras: expected a list, got 'front'"),
    "number in a list of texts": ("[front]", "[front, 3]", "9  data.cameras.1: expected text, got 3"),
    "list for a block": ("  lr: 1e-4", "  - lr", "13  optim: expected a mapping of keys, got a list"),
    "yes for true": ("[front]", "[front]\n  use_state: yes", "10  data.use_state: expected true or false, got 'yes'"),
    "one bin": ("bins: 256", "bins: 1", "7  tokenizer.bins: must be at least 2, got 1"),
    "too many bins for a state": (
        "bins: 256",
        "bins: 499",
        "7  tokenizer.bins = 499: with data.use_state the layout has room for 498",
    ),
    "negative rate": ("lr: 1e-4", "lr: -1e-4", "14  optim.lr: must be above 0, got -0.0001"),
    "infinite rate": ("lr: 1e-4", "lr: 1e999", "14  optim.lr: must be a finite number, got inf"),
    "missing number": ("lr: 1e-4", "lr: .nan", "14  optim.lr: must be a finite number, got nan"),
    "odd image size": (
        "bins: 256",
        "image: {image_size: 100}",
        "7  tokenizer.image.image_size: must be a multiple of 32, got 100",
    ),
    "projections with too few codes for their places": (
        "bins: 256",
        "image: {image_size: 64, encoder: projections, codebook_size: 100}",
        "7  tokenizer.image: encoder: projections has codes of its own for each of the 16 places of 64 pixels: make "
        "codebook_size a multiple of 16, 256 or more, or image_size smaller",
    ),
    "camera listed twice": (
        "[front]",
        "[front, wrist, front]",
        "9  data.cameras: 'front' is listed twice; list it once",
    ),
    "kind of sample listed twice": (
        "[front]",
        "[front]\n  samples: [vla, vla]",
        "10  data.samples: 'vla' is listed twice; list it once",
    ),
    "moment in the future": (
        "[front]",
        "[front]\n  history_deltas: [0.1, 0.0]",
        "10  data.history_deltas: 0.1 is in the future; give seconds before a step, at most 0",
    ),
    "moments in disorder": (
        "[front]",
        "[front]\n  history_deltas: [-0.1, -0.5, 0]",
        "10  data.history_deltas: -0.5 comes after -0.1; give the oldest first, each once",
    ),
    "moments without the present one": (
        "[front]",
        "[front]\n  history_deltas: [-0.5, -0.1]",
        "10  data.history_deltas: ends with -0.1; the last is 0, the step itself",
    ),
    "no moments": (
        "[front]",
        "[front]\n  history_deltas: []",
        "10  data.history_deltas: must have at least 1 value(s), got 0",
    ),
    "infinite moment": (
        "[front]",
        "[front]\n  history_deltas: [-.inf, 0]",
        "10  data.history_deltas.0: must be a finite number, got -inf",
    ),
    "steps and seconds": (
        "[front]",
        "[front]\n  history: 2\n  history_deltas: [-0.5, 0]",
        "8  data: history: 2 counts steps, history_deltas seconds; leave one of them out",
    ),
    "tolerance of nothing": (
        "[front]",
        "[front]\n  tolerance_s: 0.01",
        "8  data: tolerance_s belongs to history_deltas; leave it out",
    ),
    "task listed twice": (
        "    path: some/data",
        "    path: some/data\n    tasks: [open it, open it]",
        "13  data.train.tasks: 'open it' is listed twice; list it once",
    ),
    "task left out twice": (
        "    path: some/data",
        "    path: some/data\n    exclude_tasks: [open it, open it]",
        "13  data.train.exclude_tasks: 'open it' is listed twice; list it once",
    ),
    "variants of streamed images": (
        "[front]",
        "[front]\n  images: stream\n  augmentation: {crop: 0.9, variants: 2}",
        "8  data: augmentation.variants = 2 is of stored images; with images: stream each sample is changed anew every "
        "time that it is shown; leave variants out",
    ),
    "stored images without variants": (
        "[front]",
        "[front]\n  augmentation: {crop: 0.9, variants: null}",
        "8  data: augmentation.variants = null goes with images: stream; give a number",
    ),
    "token rows whose images are streamed": (
        "    kind: lerobot\n    path: some/data",
        "    kind: rynnvla_records\n    path: some/data\n  images: stream",
        "13  data.images = stream: data.train has finished token rows, whose images are codes already; set it to store",
    ),
    "no camera": ("[front]", "[]", "9  data.cameras: must have at least 1 value(s), got 0"),
    "list that is too short": (
        "lr: 1e-4",
        "betas: [0.9]",
        "14  optim.betas.1: this value is missing, the list has only 1",
    ),
    "list that is too long": (
        "lr: 1e-4",
        "betas: [0.9, 0.95, 0.99]",
        "14  optim.betas: must have at most 2 values, got 3",
    ),
    "name with a space": (
        "name: demo",
        "name: my demo",
        "1  name: expected letters, digits, '.', '_' and '-', a letter or digit first, got 'my demo'",
    ),
    "choice with a slip": (
        "preset: tiny",
        "preset: tinny",
        "2  backbone.preset: expected 'tiny', 'small' or '7b', got 'tinny' (did you mean 'tiny'?)",
    ),
    "choice in a list": (
        "[front]",
        "[front]\n  samples: [text]",
        "10  data.samples.0: expected 'vla' or 'world_model', got 'text'",
    ),
    "choice or block": (
        "bins: 256",
        "statistics: minmaxx",
        "7  tokenizer.statistics: expected 'minmax' or 'quantiles' or a mapping of keys, got 'minmaxx' "
        "(did you mean 'minmax'?)",
    ),
    "low above high": (
        "bins: 256",
        "statistics: {action_low: [0, 2], action_high: [1, 1]}",
        "7  tokenizer.statistics: action_low[1] = 2 is not below action_high[1] = 1",
    ),
    "half of the ranges": (
        "bins: 256",
        "statistics: {action_low: [0]}",
        "7  tokenizer.statistics.action_high: this key is required",
    ),
    "ranges of another dimension": (
        "bins: 256",
        "statistics: {action_low: [0], action_high: [1]}",
        "7  tokenizer.statistics.action_low has 1 numbers, action_head.action_dim is 4",
    ),
    "kind with a slip": (
        "kind: lerobot",
        "kind: lerobott",
        "11  data.train.kind: expected 'lerobot', 'libero_hdf5', 'robomimic_hdf5', 'rynnvla_conversations', 'rlds', "
        "'custom', 'mixture' or 'rynnvla_records', got 'lerobott' (did you mean 'lerobot'?)",
    ),
    "backbone with a slip": (
        "{init: scratch",
        "{kind: causal_llm, init: scratch",
        "2  backbone.kind: expected 'chameleon', 'causal_lm' or 'custom', got 'causal_llm' (did you mean 'causal_lm'?)",
    ),
    "key of another backbone": (
        "{init: scratch",
        "{family: qwen3, init: scratch",
        "2  backbone.family: this key goes with kind: causal_lm, and no kind is given",
    ),
    "sizes of a pretrained model": (
        "{init: scratch, preset: tiny}",
        "{kind: causal_lm, init: pretrained, checkpoint: here, sizes: {hidden_size: 64}}",
        "2  backbone: init: pretrained needs a checkpoint (folder or hub id), no preset and no sizes",
    ),
    "sizes of a pretrained Chameleon": (
        "{init: scratch, preset: tiny}",
        "{init: pretrained, checkpoint: here, sizes: {hidden_size: 64}}",
        "2  backbone: init: pretrained needs a checkpoint (folder or hub id), no preset and no sizes",
    ),
    "scratch without a preset": (
        "{init: scratch, preset: tiny}",
        "{kind: causal_lm}",
        "2  backbone: init: scratch needs a preset (tiny or small) and no checkpoint",
    ),
    "no kind": (
        "kind: lerobot",
        "part: all",
        "10  data.train.kind: this key is required: 'lerobot', 'libero_hdf5', 'robomimic_hdf5', "
        "'rynnvla_conversations', 'rlds', 'custom', 'mixture' or 'rynnvla_records'",
    ),
    "custom target without a class": (
        "kind: lerobot\n    path: some/data",
        "kind: custom\n    target: my/module.py",
        "12  data.train.target: expected a class as package.module:Class, or the name of an entry point of an "
        "installed package, got 'my/module.py'",
    ),
    "option that is a list": (
        "kind: lerobot\n    path: some/data",
        "kind: custom\n    target: a:B\n    options: {x: [1]}",
        "13  data.train.options.x: expected text, an integer, a number or true or false, got a list",
    ),
    "required key of a block": (
        "    path: some/data\n",
        "",
        "10  data.train: give path, the dataset's folder, or repo, a dataset of the hub",
    ),
    "revision of a folder": (
        "path: some/data",
        "path: some/data\n    revision: v1",
        "10  data.train: revision belongs to a repo of the hub; a folder has none",
    ),
    "required block": ("backbone: {init: scratch, preset: tiny}\n", "", "1  backbone: this key is required"),
    "rule of a block": (
        ", preset: tiny",
        "",
        "2  backbone: init: scratch needs a preset (tiny, small or 7b) and no checkpoint",
    ),
    "rule across blocks": (
        "lr: 1e-4",
        "lr: 1e-4\n  min_lr: 1",
        "15  optim.min_lr = 1 is above optim.lr = 0.0001",
    ),
    "rounding to nearest": (
        "epochs: 3",
        "epochs: 3\n  memory: {rounding: nearest}",
        "17  train.memory.rounding: nearest drops every update below half a bf16 ulp, so that small learning rates "
        "train nothing (a comparable fine-tuning ended with a 20.4 % higher loss); use stochastic or kahan",
    ),
    "rounding of fp32": (
        "epochs: 3",
        "epochs: 3\n  memory: {rounding: kahan}",
        "17  train.memory.rounding = kahan, but the parameters are fp32; set it to null, or train.memory.parameters to "
        "bf16",
    ),
    "bf16 parameters without bf16 arithmetic": (
        "epochs: 3",
        "epochs: 3\n  precision: fp32\n  memory: {parameters: bf16}",
        "17  train.precision = fp32 cannot compute with bf16 parameters; set it to bf16, or train.memory.parameters to "
        "fp32",
    ),
    "kahan with 8 bits": (
        "epochs: 3",
        "epochs: 3\n  memory: {parameters: bf16, rounding: kahan, optimizer_states: 8bit}",
        "17  train.memory.optimizer_states: 8bit goes with stochastic rounding or fp32 parameters, not with kahan, "
        "whose remainder alone takes as much as it saves; use bf16",
    ),
    "average that bf16 cannot follow": (
        "lr: 1e-4\ntrain:",
        "lr: 1e-4\n  betas: [0.9, 0.999]\ntrain:\n  memory: {parameters: bf16}",
        "15  optim.betas = 0.9, 0.999: with train.memory.optimizer_states = bf16 at most 0.996094, else an average "
        "changes by less than bf16 resolves; lower it, or use fp32",
    ),
    "muon of bf16": (
        "lr: 1e-4\ntrain:",
        "lr: 1e-4\n  kind: muon\ntrain:\n  memory: {parameters: bf16}",
        "15  optim.kind = muon rounds to nearest, so it needs train.memory.parameters and "
        "train.memory.optimizer_states = fp32",
    ),
    "muon on the host": (
        "lr: 1e-4\ntrain:",
        "lr: 1e-4\n  kind: muon\ntrain:\n  memory: {offload: parameters}",
        "15  optim.kind = muon multiplies matrices in its step, which train.memory.offload: parameters would do on the "
        "CPU, for minutes; use adamw, or another offload",
    ),
    "two lengths of the warm-up": (
        "lr: 1e-4",
        "{lr: 1e-4, warmup_steps: 5, warmup_epochs: 1}",
        "13  optim: warmup_epochs or warmup_steps, not both; set one of them to null",
    ),
    "no length of the warm-up": (
        "lr: 1e-4",
        "{lr: 1e-4, warmup_epochs: null}",
        "13  optim: warmup_epochs and warmup_steps are both null; for no warm-up set warmup_epochs to 0",
    ),
    "two lengths of the decay": (
        "lr: 1e-4",
        "{lr: 1e-4, schedule: wsd, decay_steps: 5, decay_epochs: 1}",
        "13  optim: decay_epochs or decay_steps, not both; set one of them to null",
    ),
    "decay of a cosine": (
        "lr: 1e-4",
        "{lr: 1e-4, decay_steps: 5}",
        "13  optim: decay_epochs and decay_steps belong to schedule: wsd, not to cosine",
    ),
    "decay longer than the training": (
        "lr: 1e-4",
        "{lr: 1e-4, schedule: wsd, decay_epochs: 3}",
        "14  optim.decay_epochs = 3 and the warm-up are longer than train.epochs = 3; shorten them, or train longer",
    ),
    "average that never changes": (
        "epochs: 3",
        "epochs: 3\n  ema: {decay: 1}",
        "17  train.ema.decay: must be below 1, got 1",
    ),
    "group without patterns": (
        "lr: 1e-4",
        "{lr: 1e-4, groups: [{lr: 1}]}",
        "14  optim.groups.0.match: this key is required",
    ),
    "best metric that there is none of": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {best_metric: val_ind_los_ct}",
        "17  train.checkpoint.best_metric: no metric is called val_ind_los_ct (did you mean val_ind_loss_ct?)",
    ),
    "best metric of a step beyond the chunk": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {best_metric: val_ind_l1_loss_action_4}",
        "17  train.checkpoint.best_metric: no metric is called val_ind_l1_loss_action_4 "
        "(did you mean val_ind_l1_loss_action_9?)",
    ),
    "best metric without direction": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {best_metric: train_lr}",
        "17  train.checkpoint.best_metric: neither lower nor higher is better of train_lr",
    ),
    "best metric that no epoch has": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {best_metric: train_samples_per_s}",
        "17  train.checkpoint.best_metric: train_samples_per_s is not a mean over an epoch",
    ),
    "best metric of evaluate": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {best_metric: evaluate/val_ind_closs}",
        "17  train.checkpoint.best_metric: evaluate/val_ind_closs is what `vlatrack evaluate` measures; training "
        "measures val_ind_closs",
    ),
    "best metric of a simulator that there is none of": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {best_metric: sim/arena/success}",
        "17  train.checkpoint.best_metric: sim/arena/success is what evaluate.closed_loop measures, and there is none",
    ),
    "metric of early stopping that there is none of": (
        "epochs: 3",
        "epochs: 3\n  early_stopping: {patience: 3, metric: val_ind_los}",
        "17  train.early_stopping.metric: no metric is called val_ind_los (did you mean val_ind_loss?)",
    ),
    "early stopping without patience": (
        "epochs: 3",
        "epochs: 3\n  early_stopping: {metric: val_ind_loss}",
        "17  train.early_stopping.patience: this key is required",
    ),
    "evaluation in a simulator between two checkpoints": (
        "epochs: 3",
        "epochs: 3\n  checkpoint: {every_epochs: 2}\nevaluate:\n  closed_loop: {every_epochs: 3, evaluation: a.yaml}",
        "19  evaluate.closed_loop.every_epochs = 3, but a checkpoint to evaluate is saved every 2 epochs "
        "(train.checkpoint.every_epochs); make it a multiple of that",
    ),
    "evaluation in a simulator without its file": (
        "epochs: 3",
        "epochs: 3\nevaluate:\n  closed_loop: {every_epochs: 1}",
        "18  evaluate.closed_loop.evaluation: this key is required",
    ),
    "profile that ends before it begins": (
        "epochs: 3",
        "epochs: 3\n  profile: {steps: [13, 10]}",
        "17  train.profile: steps 13 to 10: give the first and the last of at most 50 steps",
    ),
    "profile of a whole training": (
        "epochs: 3",
        "epochs: 3\n  profile: {steps: [1, 5000]}",
        "17  train.profile: steps 1 to 5000: give the first and the last of at most 50 steps",
    ),
    "own loss term without weight": (
        "optim:",
        'loss:\n  terms:\n    - {kind: custom, target: "my.terms:Mine"}\noptim:',
        "15  loss.terms.0.weight: this key is required",
    ),
    "own loss term that is no class": (
        "optim:",
        "loss:\n  terms:\n    - {kind: custom, target: 3d, weight: 1}\noptim:",
        "15  loss.terms.0.target: expected a class as package.module:Class, or the name of an entry point of an "
        "installed package, got '3d'",
    ),
    "key given twice": ("lr: 1e-4", "lr: 1e-4\n  lr: 2e-4", "15  optim.lr: this key is given twice"),
    "key that is a list": ("lr: 1e-4", "[a, b]: 1", "14  optim: a key must be a plain word"),
    "python tag": (
        "lr: 1e-4",
        "lr: !!python/name:os.system",
        "14  optim.lr: the YAML tag '!!python/name:os.system' is not supported",
    ),
    "value against its tag": ("lr: 1e-4", "lr: !!float x", "14  optim.lr: the value does not fit its tag '!!float'"),
    "merge of a scalar": ("  lr: 1e-4", "  <<: 3", "14  optim: '<<' takes a mapping or a list of mappings"),
    "bad indentation": (
        "  lr: 1e-4",
        "  lr: 1e-4\n lr: 2",
        "15  not valid YAML: expected <block end>, but found '<block mapping start>' (check the indentation)",
    ),
    "tab": (
        "  lr: 1e-4",
        "\tlr: 1e-4",
        "14  not valid YAML: found character '\\t' that cannot start any token (indent with spaces, not tabs)",
    ),
    "unclosed bracket": (
        "[front]",
        "[front",
        "10  not valid YAML: expected ',' or ']', but got ':'",
    ),
    "unknown alias": ("lr: 1e-4", "lr: *none", "14  not valid YAML: found undefined alias 'none'"),
    "control character": ("lr: 1e-4", "lr: \x07", "14  not valid YAML: character '\\x07'"),
    "two documents": (
        "optim:",
        "---\noptim:",
        "13  not valid YAML: found another document (remove the '---' between documents)",
    ),
    "alias of itself": (
        "lr: 1e-4",
        "lr: &loop [*loop]",
        "14  not valid YAML: aliases expand to more than 100000 values or 32 levels",
    ),
}

BAD_OVERRIDES = {
    "optim.lrr=1": "optim.lrr: unknown key (did you mean 'lr'?)",
    "optimm.lr=1": "optimm: unknown key (did you mean 'optim'?)",
    "train.epochs=many": "train.epochs: expected an integer, got 'many'",
    "train.epochs=": "train.epochs: expected an integer, got null",
    "train.epochs.x=1": "train.epochs is a single value and has no 'x'",
    "data.cameras.1=x": "data.cameras is a list of 1: expected an index below 1, got '1'",
    "data.cameras.last=x": "data.cameras is a list of 1: expected an index below 1, got 'last'",
    "tracking.backends.0.kind=wandbb": (
        "tracking.backends.0.kind: expected 'mlflow', 'wandb', 'tensorboard' or 'custom', got 'wandbb' "
        "(did you mean 'wandb'?)"
    ),
    "data.cameras=[a": "not valid YAML: expected ',' or ']', but got '<stream end>'",
    "data.val_ind.kind=lerobot": "data.val_ind: give path, the dataset's folder, or repo, a dataset of the hub",
    "train.epochs": "expected path=value, such as optim.lr=1e-5",
    "train..epochs=2": "expected path=value, such as optim.lr=1e-5",
    "=2": "expected path=value, such as optim.lr=1e-5",
}


def message_of(file: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as error:
        load_spec(file, overrides)
    return str(error.value)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "exp.yaml"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize(("old", "new", "line"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_in_the_file_is_one_line_with_its_place(good: Path, old: str, new: str, line: str) -> None:
    assert GOOD.count(old) == 1
    good.write_text(GOOD.replace(old, new))
    assert message_of(good) == f"{good}:{line}"


@pytest.mark.parametrize(("override", "line"), BAD_OVERRIDES.items(), ids=BAD_OVERRIDES)
def test_a_mistake_in_an_override_is_one_line_that_shows_the_override(good: Path, override: str, line: str) -> None:
    assert message_of(good, override) == f"override '{override}'  {line}"


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file_then_of_the_overrides(good: Path) -> None:
    good.write_text(GOOD.replace("epochs: 3", "epochs: x").replace("lr: 1e-4", "lr: 1\n  lr: 2"))
    assert message_of(good, "seed=-1", "loss.z_loss=1").splitlines() == [
        f"{good}:15  optim.lr: this key is given twice",
        f"{good}:17  train.epochs: expected an integer, got 'x'",
        "override 'seed=-1'  seed: must be at least 0, got -1",
        "override 'loss.z_loss=1'  loss.z_loss: unknown key (did you mean 'z_loss_weight'?)",
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ":1  expected a mapping of keys such as 'name: my-experiment'; the file is empty"),
        (b"# nothing yet\n", ":1  expected a mapping of keys such as 'name: my-experiment'; the file is empty"),
        (b"- a\n- b\n", ":1  expected a mapping of keys such as 'name: my-experiment'; this is not one"),
        (b"name: \xff\xfe\n", ": is not UTF-8 text"),
        (b"x" * 2_000_000, ": larger than 1 MiB, so this is not an experiment"),
        (b"[" * 5000, ":1  not valid YAML: nested more than 32 levels deep"),
    ],
)
def test_a_file_that_is_no_experiment_is_told_so(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "exp.yaml"
    file.write_bytes(content)
    assert message_of(file) == f"{file}{line}"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert message_of(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert message_of(tmp_path) == f"{tmp_path}: is a folder, expected a YAML file"


def test_aliases_that_expand_to_billions_of_values_are_refused_quickly(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    file = tmp_path / "exp.yaml"
    file.write_text("\n".join(levels))
    assert "aliases expand to more than 100000 values" in message_of(file)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: wandb", "kind: wandb\n      api_key: hunter2"),
        ("kind: wandb", "kind: wandb\n      password: [hunter2]"),
        ("kind: mlflow", "kind: mlflow\n      tracking_uri: https://me:hunter2@host"),
        ("kind: mlflow", "kind: mlflow\n      tracking_uri: https://hunter2@host"),
        ("kind: lerobot\n    path: some/data", "kind: custom\n    target: a:B\n    options: {hub_token: hunter2}"),
        ("epochs: 3", "epochs: postgres://me:hunter2@host/db"),
        ("name: demo", "name: demo\nSECRET: hunter2"),
    ],
)
def test_a_secret_is_refused_and_never_shown(good: Path, old: str, new: str) -> None:
    good.write_text(GOOD.replace(old, new))
    message = message_of(good)
    assert "hunter2" not in message
    assert message.count("\n") == 0
    assert "environment variable" in message


@pytest.mark.parametrize(
    "override",
    [
        "tracking.backends.1.api_key=hunter2",
        "tracking.backends=[{kind: wandb, api_key: hunter2}]",
        "tracking.backends.0.tracking_uri=https://me:hunter2@host",
        "tracking.backends=[{kind: wandb, 'api_key': hunter2",
    ],
)
def test_a_secret_in_an_override_is_refused_and_never_shown(good: Path, override: str) -> None:
    message = message_of(good, override)
    assert "hunter2" not in message
    assert message.startswith("override 'tracking.backends")


def test_no_message_speaks_of_the_validation_library(good: Path) -> None:
    for old, new, _ in BAD_FILES.values():
        good.write_text(GOOD.replace(old, new))
        assert not re.search(
            r"(?i)pydantic|input should|value error|literal\[|https?://|extra inputs", message_of(good)
        )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mlflow", "not a list"),
        ("null", "not a list"),
        ("{kind: mlflow}", "not a list"),
        ("[mlflow, 3]", "backends.1: "),
        ("[{kind", "not valid YAML"),
    ],
)
def test_trackers_of_the_command_line_that_are_no_list_are_one_line_with_an_example(text: str, told: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_backends(text)
    assert str(error.value).startswith(f"--backends: {told}")
    assert str(error.value).endswith('; write a list such as "[{kind: mlflow}]", or "[]" for none')
    assert "\n" not in str(error.value)
