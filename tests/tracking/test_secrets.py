"""Which names say that their value is a secret: in a spec, in an override, in a parameter."""

import json
from pathlib import Path

import pytest
from happens import happens

from vlatrack.spec.secrets import SECRET_KEY, may_hold_secret
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.privacy import redact, redact_param
from vlatrack.tracking.run import DatasetInput, TrackedRun, start_run
from vlatrack.tracking.secret_shapes import HIDDEN

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
        ("git+ssh://git@github.com/x", "git+ssh://git@github.com/x"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("redis://s3cret@cache:6379/0", "redis://***@cache:6379/0"),
        ("mongodb+srv://u:p@cluster.example/db", "mongodb+srv://***@cluster.example/db"),
        ("http://mlflow.lab:5000/#/experiments/1/runs/2", "http://mlflow.lab:5000/#/experiments/1/runs/2"),
        ('["mlflow://x:5000","mail","a@b"]', '["mlflow://x:5000","mail","a@b"]'),
    ],
)
def test_what_logs_in_at_an_address_is_hidden(address: str, shown: str) -> None:
    assert redact(f"cloned from {address} today") == f"cloned from {shown} today"


WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/a?token=abc&step=3", "https://h/a?token=***&step=3"),
        ("https://h/a?b=1&api_key=abc#x", "https://h/a?b=1&api_key=***#x"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Credential=AK/x&X-Amz-Signature=0af", None),
        ("https://a.blob.core.windows.net/c?sv=2020&sig=a%2Bb%3D", "https://a.blob.core.windows.net/c?sv=2020&sig=***"),
        ("key AKIAIOSFODNN7EXAMPLE of AWS", "key *** of AWS"),
        ("ASIAIOSFODNN7EXAMPLE", "***"),
        ("Server=tcp:db,1433;Database=d;User ID=me;Password=s3cret;Encrypt=True", None),
        ("Password=s3cret;Server=db", "Password=***;Server=db"),
        ("AccountName=a;AccountKey=c2VjcmV0==;EndpointSuffix=x", "AccountName=a;AccountKey=***;EndpointSuffix=x"),
        ("host=db user=me password=s3cret dbname=runs", "host=db user=me password=*** dbname=runs"),
        ("password=s3cret host=db", "password=*** host=db"),
        ("https://hooks.slack.com/services/T0/B0/s3cret", "https://hooks.slack.com/services/***"),
        ("https://discord.com/api/webhooks/123/s3cret sent", "https://discord.com/api/webhooks/*** sent"),
        ("Authorization: Basic bWU6cHc= was refused", "Authorization: Basic *** was refused"),
        ("hf_abcdefghijklmnopqrstuvwxyz012345", "***"),
        ("ghp_0123456789abcdefghijklmnopqrstuvwxyz", "***"),
        ("github_pat_11ABCDEFG0_0123456789abcdefghijk", "***"),
        ("sk-proj-0123456789abcdefghijkl", "***"),
        ("xoxb-0123456789-abcdef", "***"),
        ("glpat-0123456789abcdefghij", "***"),
        (f"commit {WANDB_KEY}", f"commit {WANDB_KEY}"),  # a key of W&B looks like a commit of git
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----", None),
    ],
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(text: str, shown: str | None) -> None:
    hidden = redact(text)
    if shown is not None:
        assert hidden == shown
    assert not any(secret in hidden for secret in ("0af", "AK/x", "s3cret", "MII"))
    assert json.loads(redact(json.dumps([text, "after"])))[1] == "after"


@pytest.mark.parametrize(
    "text",
    [
        "a task-oriented-policy-with-long-names-0123 and sk-learn",
        "loss_per_token=0.1 password=args.password, secretary",
        "diff --git a/x.py b/x.py\n+connect(password=os.environ['DB'], token=token)",
        "https://h/a?stokens=3&step=4#token",
        "basic understanding of tokens; the bearer of this",
        "3 % of AKIAS and of hf_hub_download in ghp_",
        "e" * 200_000,
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "name",
    "GIT_PAT db_pass SMTP_PASS app.credentials GOOGLE_CREDENTIALS all_secrets SENTRY_DSN slack_webhook WEBHOOK_URL "
    "aws_secret_access_key privateKey apiKey hubToken DBPassword connection_string".split(),
)
def test_names_that_end_like_one_of_a_secret_hide_their_value(name: str) -> None:
    assert redact_param(name, "abc") == HIDDEN
    nested = json.dumps({"a": [{name: "abc", "n": 1}], "b": {name: {"deep": "abc"}}})
    assert json.loads(redact_param("db", nested)) == {"a": [{name: HIDDEN, "n": 1}], "b": {name: HIDDEN}}


@pytest.mark.parametrize(
    "name", "pass_rate compass token_count secretary forward_pass eosToken pat path bypass pass_at_1 dsn_dim".split()
)
def test_names_that_only_resemble_one_keep_their_value(name: str) -> None:
    assert redact_param(name, "abc") == "abc"
    nested = '{"' + name + '": 1e-4, "other": [1, 2]}'
    assert redact_param("x", nested) == nested


@pytest.mark.parametrize("name", ["CI_PAT", "DB_PASS", "APP_CREDENTIALS", "ALL_SECRETS", "SENTRY_DSN", "SLACK_WEBHOOK"])
def test_variables_that_end_like_one_of_a_secret_are_hidden_in_any_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "abcd-efgh")
    assert redact("401 for abcd-efgh.") == f"401 for {HIDDEN}."


def test_short_values_of_known_variables_are_hidden_as_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mind")
    assert redact("login me:mind, 'mind'; remind, mind_map, minder") == (
        f"login me:{HIDDEN}, '{HIDDEN}'; remind, mind_map, minder"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "100")  # a number would be hidden in every other number's place
    assert redact('{"steps": 100}') == '{"steps": 100}'
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    assert redact(f"key {WANDB_KEY}") == f"key {HIDDEN}"


def test_a_path_of_a_file_of_credentials_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/srv/me/key.json")
    assert redact("/srv/me/key.json: no such file") == "/srv/me/key.json: no such file"


@happens(
    "item",
    "a nested parameter, the name of a dataset or of an event, or an address holds a secret",
    "`***` stands in its place in the journal and at every tracker",
)
def test_no_secret_reaches_the_journal_by_a_nested_param_a_dataset_or_an_event(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "planted-0123")
    run = TrackedRun.start(
        run_dir,
        uid="u",
        name="n",
        experiment="e",
        backends=[],
        params={"db": {"password": "planted-4567", "port": 5432}},  # type: ignore[dict-item]
        tags={},
        datasets=[DatasetInput("demo planted-0123", '{"api_key": "planted-89ab"}', "ab" * 32, "train")],
    )
    run.event("login planted-0123", {"url": "https://h/?token=planted-cdef"}, alert=True)
    run.finish("FINISHED")
    text = (run_dir / "journal.jsonl").read_text()
    assert "planted" not in text
    assert "5432" in text


@happens(
    "item",
    "the name or the group of a run, or the name of a metric, holds a secret",
    "`***` stands in its place in the journal and at every tracker, and the rest is kept",
)
def test_no_secret_reaches_the_journal_by_the_name_of_a_run_a_group_or_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "planted-0123")
    run = start_run("exp", runs=tmp_path, backends=[], name="at planted-0123", group="by planted-0123")
    for step in (1, 2):
        run.log({"loss": 0.5, "db planted-0123": 1.0}, step=step)
    run.finish("FINISHED")
    start, *logged = list(read_records(run.path / "journal.jsonl"))[:3]
    assert (start.data["name"], start.data["group"]) == ("at ***", "by ***")
    assert [record.data for record in logged] == 2 * [{"loss": 0.5, "db ***": 1.0}]
    assert "planted" not in (run.path / "journal.jsonl").read_text()
