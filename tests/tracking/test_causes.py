"""The cause comes first, and then what to do."""

import socket

import pytest
import requests
from happens import happens
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from vlatrack.tracking.delivery.causes import one_line


@happens(
    "server",
    "a tracker cannot be reached, or refuses",
    "the cause comes first, then what to do, then the client's words",
)
@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ("API request failed with error code 401 != 200. Response body: 'no'", "401: no login, or a wrong one; set "),
        ("API request failed with error code 403 != 200", "403: this login may not do that"),
        ("Received 429 Too Many Requests", "429: a quota or a rate limit is used up"),
        ("[Errno 28] No space left on device: 'mlflow.db'", "the disk is full; free some space"),
        ("HTTPSConnectionPool: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "TLS: the server's certificate is not"),
        ("(sqlite3.OperationalError) database is locked", "the database is locked by another process"),
        ("No module named 'boto3'", "a package is missing where the delivery runs; install it"),
    ],
)
def test_the_cause_comes_before_what_the_client_said(said: str, begins: str) -> None:
    told = one_line(MlflowException(said))
    assert told.startswith(begins)
    assert said.split(":")[0] in told


def test_what_is_not_known_is_told_as_it_is_said() -> None:
    assert one_line(ValueError("something\nelse")) == "ValueError: something else"


def test_the_cause_is_found_behind_the_errors_that_it_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(MlflowException) as failed:
        MlflowClient(f"http://127.0.0.1:{port}").search_experiments()
    assert one_line(failed.value).startswith("nothing listens there (connection refused); is the server up")
    outer = RuntimeError("run initialization failed")
    outer.__cause__ = requests.exceptions.ReadTimeout("HTTPConnectionPool: Read timed out.")
    assert one_line(outer).startswith("no answer in time; is the server busy? `vlatrack sync --patience 600`")
