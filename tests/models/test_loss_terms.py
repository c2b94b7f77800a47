"""Loss terms of one's own: how they count, and what is said of those that cannot be used."""

import pytest
import torch
from program import TOY

from vlatrack.builders.policy import build_losses, build_schema
from vlatrack.errors import LossError, SpecError, VlatrackError
from vlatrack.metrics.losses import LossMetric
from vlatrack.models.losses.base import LossTerm, non_finite_terms
from vlatrack.models.losses.terms import check_names
from vlatrack.spec.load import load_spec
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout

LAYOUT = TokenLayout()


class Smallness(LossTerm):
    """Mean square of the head's actions."""

    metric = LossMetric("smallness", "mean square of the head's actions", "normalised action²")

    def __init__(self, *, weight: float, power: int = 2) -> None:
        super().__init__(weight=weight)
        self.power = power

    def count(self, batch):
        return batch.action_index.numel()

    def total(self, inputs):
        return (inputs.actions**self.power).sum()


class Vector(Smallness):
    def total(self, inputs):
        return inputs.actions.sum(0)


class Number(Smallness):
    def total(self, inputs):
        return super().total(inputs).item()


class Detached(Smallness):
    def total(self, inputs):
        return super().total(inputs).detach()


class Uncounted(Smallness):
    def count(self, batch):
        return -1


class Constant(Smallness):
    def total(self, inputs):
        return inputs.actions.sum() * torch.inf


class Nameless(LossTerm):
    def count(self, batch):
        return 0

    def total(self, inputs):
        raise NotImplementedError


def test_own_term_is_part_of_the_loss_and_of_its_gradient(make_policy, rows) -> None:
    plain, policy = make_policy(), make_policy(own=[Smallness(weight=3.0)])
    batch = collate(rows, LAYOUT)
    actions = plain(batch).actions
    expected = plain.loss(plain(batch), plain.loss_counts(batch)) + 3.0 * actions.square().mean()
    loss = policy.loss(policy(batch), policy.loss_counts(batch))
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(policy.action_head.queries.grad, plain.action_head.queries.grad)
    named = policy.metric_values(policy(batch).states)
    assert named["smallness"] == pytest.approx(actions.square().mean().item())
    assert named["weighted_smallness"] == 3 * named["smallness"]
    assert named["loss"] == pytest.approx(loss.item())


def test_own_term_is_left_out_of_batches_that_it_counts_nothing_in(make_policy, rows) -> None:
    policy, batch = make_policy(own=[Smallness(weight=3.0)]), collate([rows[1]], LAYOUT)
    output = policy(batch)
    assert output.totals["smallness"] == 0
    assert policy.metric_values(output.states)["smallness"] == 0
    assert "smallness" not in output.states


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Vector, r"loss term smallness: total\(\) returned a tensor of shape \[3, 2\]; expected a scalar"),
        (Number, r"loss term smallness: total\(\) returned float; expected a scalar tensor"),
        (Detached, r"loss term smallness: total\(\) does not depend on what the policy computes"),
        (Uncounted, r"loss term smallness: count\(\) returned -1; expected a finite number, 0 or more"),
    ],
)
def test_a_term_that_returns_no_loss_is_named(make_policy, rows, term, message) -> None:
    with pytest.raises(LossError, match=message):
        make_policy(own=[term(weight=1.0)])(collate(rows, LAYOUT))


def test_a_term_that_is_only_logged_needs_no_gradient(make_policy, rows) -> None:
    policy, batch = make_policy(own=[Detached(weight=0.0)]), collate(rows, LAYOUT)
    output = policy(batch)
    assert policy.metric_values(output.states)["smallness"] > 0
    policy.loss(output, policy.loss_counts(batch)).backward()


def test_a_term_that_is_not_finite_is_told_apart(make_policy, rows) -> None:
    policy = make_policy(own=[Constant(weight=1.0)])
    assert non_finite_terms(policy(collate(rows, LAYOUT)).totals) == ["smallness"]
    assert non_finite_terms(make_policy()(collate(rows, LAYOUT)).totals) == []


def _named(name: str) -> LossTerm:
    return type("Named", (Smallness,), {"metric": LossMetric(name, "of a test")})(weight=1.0)


@pytest.mark.parametrize(
    ("name", "clash"),
    [
        ("closs", "train_closs"),
        ("loss", "train_loss"),
        ("weighted_z_loss", "train_weighted_z_loss"),
        ("lr", "train_lr"),
        ("lr_action_head", "train_lr_action_head"),
        ("acc_image", "train_acc_image"),
        ("acc_image_3", "train_acc_image_3"),
        ("l1_loss_action_7", "train_l1_loss_action_7"),
        ("l1_loss_head_dim_12", "train_l1_loss_head_dim_12"),
    ],
)
def test_a_name_that_a_metric_has_is_refused(name, clash) -> None:
    with pytest.raises(LossError, match=f"loss term {name}: another metric is called {clash}"):
        check_names([_named(name)])


def test_two_terms_of_one_name_and_names_that_are_no_identifier_are_refused() -> None:
    with pytest.raises(LossError, match="loss term smallness: another metric is called train_smallness;"):
        check_names([_named("smallness"), _named("smallness")])
    with pytest.raises(LossError, match=r"loss term 'a/b': expected a name of a-z, 0-9 and _"):
        check_names([_named("a/b")])
    check_names([_named("smallness"), _named("smoothness")])


def _build(*terms: str) -> tuple[LossTerm, ...]:
    return build_losses(load_spec(TOY, [f"loss.terms=[{', '.join(terms)}]"]), TokenLayout())


def test_the_yaml_names_terms_with_weight_and_options() -> None:
    *_, term = _build('{kind: custom, target: "test_loss_terms:Smallness", weight: 0.5, options: {power: 4}}')
    assert isinstance(term, Smallness)
    assert (term.weight, term.power) == (0.5, 4)
    assert [term.name for term in _build()] == ["closs", "loss_ct", "z_loss"]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ('target: "no_such:Term", weight: 1', "loss.terms.0: no_such:Term: cannot be loaded"),
        ('target: "pathlib:Path", weight: 1', r"loss\.terms\.0: pathlib:Path "),
        ('target: "test_loss_terms:Nameless", weight: 1', r"loss\.terms\.0: test_loss_terms:Nameless lacks its name"),
        (
            'target: "test_loss_terms:Smallness", weight: 1, options: {cube: 3}',
            r"loss\.terms\.0: test_loss_terms:Smallness: options: got an unexpected",
        ),
        ('target: "test_loss_terms:Smallness"', r"loss\.terms\.0\.weight: this key is required"),
        ('target: "test_loss_terms:Smallness", weight: -1', "weight: must be at least 0, got -1"),
    ],
)
def test_a_term_that_cannot_be_built_is_one_line(term, message) -> None:
    with pytest.raises(VlatrackError, match=message) as caught:
        _build(f"{{kind: custom, {term}}}")
    assert "\n" not in str(caught.value)


def test_the_schema_of_an_experiment_has_its_own_terms() -> None:
    term = '{kind: custom, target: "test_loss_terms:Smallness", weight: 0.5}'
    overrides = [f"loss.terms=[{term}]", "train.checkpoint.best_metric=val_ind_smallness"]
    schema = build_schema(load_spec(TOY, overrides))
    assert schema["val_ood_weighted_smallness"].group == "loss"
    with pytest.raises(SpecError, match=r"best_metric: no metric is called val_ind_smallnes \(did you mean"):
        build_schema(load_spec(TOY, [*overrides, "train.checkpoint.best_metric=val_ind_smallnes"]))
