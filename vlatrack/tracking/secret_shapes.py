"""What a secret looks like: the names of variables and parameters that hold one, and the text of one.

A false alarm destroys what a user wants to read or to run again: each shape is one that little else has.
"""

import re

HIDDEN = "***"

_WORDS = (
    r"api_?key|(?:access|private|secret|signing|account)_?key|token|password|passwd|passphrase|secrets?|credentials?|"
    r"webhook(?:_url)?|dsn|connection_?string"
)
_SECRET_PARAM = re.compile(rf"(?i)(?:^|[._-])(?:{_WORDS})$|[._-](?:pat|pass)$")
_VOCABULARY = "bos|eos|pad|unk|sep|cls|mask|special|image|img|frame|text|action|state|start|end|stop|begin|per"
_PASSES = "forward|backward|first|second|third|last|single|one|two|each|per|multi|high|low|band|by"
_HARMLESS_PARAM = re.compile(rf"(?i)(?:^|[._-])(?:(?:{_VOCABULARY})[_-]token|(?:{_PASSES})[_-]pass)$")
"""A token of a language model's vocabulary, a pass over data: `eos_token` is no secret, `hf_token` is."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

SECRET_VARIABLE = re.compile(
    r"(?i)(?:KEY|TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRETS?|CREDENTIALS?|_PAT|_PASS|_DSN|WEBHOOK(?:_URL)?"
    r"|CONNECTION_?STRING)$"
)
"""The names of environment variables that hold a secret."""
KNOWN_VARIABLES = (
    "WANDB_API_KEY MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN HF_TOKEN "
    "HUGGING_FACE_HUB_TOKEN DATABRICKS_TOKEN GITHUB_TOKEN GH_TOKEN PGPASSWORD"
).split()
"""What they hold is a secret, however short it is."""

URL_PASSWORD = re.compile(r"(?<=://)[^/\s@\"]*:[^/\s\"]+(?=@)|(?<=https://)[^/\s@\"]+(?=@)|(?<=http://)[^/\s@\"]+(?=@)")
"""A password in an address, or what stands alone before the @ of a web address, such as a GitHub token."""
_URL_TOKEN = re.compile(r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,30}://)[^/\s@\":\\]+(?=@)")
_NAMES_A_USER = re.compile(r"(?i)(?:.*ssh.*|sftp|rsync|git|abfss?|wasbs?)://")
"""Schemes in which a user or a container stands before the @, as in ssh://git@github.com."""

_CONNECTION_KEY = r"(?:password|pwd|accountkey|sharedaccesskey|sharedaccesssignature)"
_POSTGRES_KEY = r"(?:host|hostaddr|port|user|dbname|sslmode)"
_AFTER = [
    # A query: ?token=…, &api_key=…, and what signs an address.
    r"[?&;](?:[\w.-]{0,40}(?:token|api_?key|secret|password|passwd|signature|credential)|sig|pwd)=",
    rf";\s*{_CONNECTION_KEY}\s*=\s*",
    rf"\b{_CONNECTION_KEY}=(?=[^;\s\"'\\]+;)",
    rf"\b{_POSTGRES_KEY}=\S+\s+password=",
    rf"\bpassword=(?=[^\s\"'\\]+\s+{_POSTGRES_KEY}=)",
    r"authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer|token)\s+",
    r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks)/",
    r"(?:[\w.-]{1,60}\.webhook\.office\.com/webhookb2|chat\.googleapis\.com/v1/spaces)/",
    r"api\.telegram\.org/bot",
]
_SECRET_AFTER = re.compile(rf"(?i)((?:{'|'.join(_AFTER)}))[^&;\s\"'#\\<>]+")
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[A-Za-z0-9-]{10,}|sk-(?=[\w-]*\d)[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)(?![A-Za-z0-9])"
)
"""Access key ids of AWS, tokens of Hugging Face, GitHub, GitLab, Slack, OpenAI and Anthropic, and JSON web tokens."""
_PRIVATE_KEY = re.compile(r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----)")


def names_secret(name: str) -> bool:
    """Whether the value of a parameter of this name is a secret: `db.password`, `hubToken`, `REPO_PAT`."""
    spelled = _CAMEL.sub("_", name)
    return _SECRET_PARAM.search(spelled) is not None and _HARMLESS_PARAM.search(spelled) is None


def hide_shapes(text: str) -> str:
    """The text without what looks like a secret by itself: logins in addresses, signatures, tokens, private keys."""
    text = URL_PASSWORD.sub(HIDDEN, text)
    text = _URL_TOKEN.sub(lambda found: found[0] if _NAMES_A_USER.match(found[1]) else found[1] + HIDDEN, text)
    text = _SECRET_AFTER.sub(rf"\1{HIDDEN}", text)
    text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}\2", text)
    return _TOKEN.sub(HIDDEN, text)
