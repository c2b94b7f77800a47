"""Which names say that their value is a secret: in a spec, in an override, in a parameter."""

import json

import pytest

from vlatrack.spec.secrets import SECRET_KEY, may_hold_secret
from vlatrack.tracking.privacy import HIDDEN, redact, redact_param

SECRETS = (
    "token hf_token HF_TOKEN hub-token api_key apikey API_KEY WANDB_API_KEY access_token auth_token refresh_token "
    "session_token backend_token sendtoken_token password db_password passwd secret client_secret hub.token passphrase "
    "credentials"
).split()
HARMLESS = (
    "eos_token bos_token pad_token unk_token EOS_TOKEN eos-token mask_token image_token action_token state_token "
    "tokenizer.eos_token special_token loss_per_token eos_token_id max_tokens tokens tokenizer tokens_per_s "
    "image_token_weight num_image_tokens token_layout monkey key"
).split()


@pytest.mark.parametrize("name", SECRETS)
def test_the_name_of_a_secret_hides_its_value(name: str) -> None:
    assert redact_param(name, "abc") == HIDDEN
    assert SECRET_KEY.search(name)
    assert may_hold_secret(f"{name}=abc")
    assert may_hold_secret(f"tracker={{{name}: abc}}")


@pytest.mark.parametrize("name", HARMLESS)
def test_a_token_of_the_vocabulary_is_no_secret(name: str) -> None:
    assert redact_param(name, "</s>") == "</s>"
    assert not SECRET_KEY.search(name)
    assert not may_hold_secret(f"{name}=</s>")
    assert not may_hold_secret(f'tracker={{"{name}": </s>}}')


def test_a_password_is_hidden_in_json_and_where_another_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_PASSWORD", 'pa"ss\\w0rd-ä')
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefghijklmnop")
    command = ["vlatrack", 'note=pa"ss\\w0rd-ä', "abcdefghijklmnop"]
    for text in (json.dumps(command), json.dumps(command, ensure_ascii=False)):
        assert json.loads(redact(text)) == ["vlatrack", f"note={HIDDEN}", HIDDEN]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:p@ss@host/db", "postgresql://***@host/db"),
        ("https://ghp_0123456789@github.com/x", "https://***@github.com/x"),
        ("ssh://git@github.com/x", "ssh://git@github.com/x"),
        ('["mlflow://x:5000","mail","a@b"]', '["mlflow://x:5000","mail","a@b"]'),
    ],
)
def test_what_logs_in_at_an_address_is_hidden(address: str, shown: str) -> None:
    assert redact(f"cloned from {address} today") == f"cloned from {shown} today"
