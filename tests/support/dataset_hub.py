"""The double of the Hugging Face hub for datasets, whose addresses differ from those of models."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from http_double import serving
from hub_double import HubDouble, _handler


@contextmanager
def dataset_hub() -> Iterator[HubDouble]:
    """The double, for as long as the context lasts."""
    double = HubDouble()
    of_models = _handler(double)

    class Handler(of_models):
        def parse_request(self) -> bool:
            understood = super().parse_request()
            if understood:
                self.path = re.sub(r"^/api/datasets/", "/api/models/", self.path)
                self.path = re.sub(r"^/datasets/", "/", self.path)
                revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+).*", self.path)
                if revision and revision[2] not in ("main", double.sha(revision[1])):
                    self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
                    return False
            return understood

        def do_GET(self) -> None:  # noqa: N802
            listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/?]+(?:\?.*)?", self.path)
            if listed is None:
                return super().do_GET()
            files = double.files[listed[1]].items()
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files
                ]
            )

    with serving(Handler) as double.url:
        yield double
