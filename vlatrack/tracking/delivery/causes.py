"""Why a tracker could not be reached or took nothing: the cause first, then what to do, then what its client said."""

import re

from vlatrack.tracking.privacy import redact

LONGEST = 500
_CAUSES = (
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|\[SSL|x509:",
        "TLS: the server's certificate is not trusted; name your CA in REQUESTS_CA_BUNDLE, or SSL_CERT_FILE for W&B",
    ),
    (
        r"\b401\b|[Uu]nauthorized|UNAUTHENTICATED|[Ii]nvalid API key|API key not configured",
        "401: no login, or a wrong one; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or WANDB_API_KEY",
    ),
    (r"\b403\b|\bForbidden\b|PERMISSION_DENIED", "403: this login may not do that; ask who runs the server"),
    (
        r"\b429\b|[Rr]ate limit|[Qq]uota|\b507\b|REQUEST_LIMIT_EXCEEDED",
        "429: a quota or a rate limit is used up; free space at the tracker, or wait",
    ),
    (r"No space left on device|Disk quota exceeded|disk is full", "the disk is full; free some space"),
    (
        r"Name or service not known|NameResolutionError|No address associated|no such host|getaddrinfo",
        "the name of the host is not known; check the address and the network",
    ),
    (r"[Cc]onnection refused", "nothing listens there (connection refused); is the server up, and the address right?"),
    (r"timed out|[Tt]imeout", "no answer in time; is the server busy? `vlatrack sync --patience 600` waits longer"),
    (r"database is locked", "the database is locked by another process"),
    (r"No module named", "a package is missing where the delivery runs; install it"),
)


def one_line(error: Exception) -> str:
    """What went wrong, in one line without secrets, for a cursor, a table or a log."""
    text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
    chain = " ".join((text, *(str(cause) for cause in _causes_of(error))))
    known = next((cause for pattern, cause in _CAUSES if re.search(pattern, chain)), None)
    return text[:LONGEST] if known is None else f"{known} ({text[: LONGEST - len(known)]})"


def _causes_of(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found
