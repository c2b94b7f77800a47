"""How long clients wait."""

import time
from collections import Counter, deque
from typing import Any

import numpy as np

_KEPT = 10_000


class Latencies:
    """What a server measures of its requests; used by one thread. Percentiles are those of the last 10,000."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._start = time.monotonic()
        self._inference: deque[float] = deque(maxlen=_KEPT)
        self._requests: deque[float] = deque(maxlen=_KEPT)
        self._batches: Counter[int] = Counter()
        self.clients, self.refused, self.requests, self.connected = 0, 0, 0, 0

    def add_batch(self, size: int, seconds: float) -> None:
        """One pass of the policy over so many observations."""
        self._batches[size] += 1
        self._inference.append(seconds)

    def add_request(self, seconds: float) -> None:
        """From the arrival of a frame until its answer is handed to the network."""
        self.requests += 1
        self._requests.append(seconds)

    def figures(self) -> dict[str, Any]:
        """For /metrics."""
        passes = self._batches.total()
        rows = sum(size * count for size, count in self._batches.items())
        return {
            "uptime_s": round(time.monotonic() - self._start, 3),
            "clients": self.clients,
            "connected": self.connected,
            "requests": self.requests,
            "refused": self.refused,
            "request_ms": _percentiles(self._requests),
            "inference_ms": _percentiles(self._inference),
            "batches": {str(size): count for size, count in sorted(self._batches.items())},
            "batch_mean": round(rows / passes, 3) if passes else None,
        }

    def line(self) -> str:
        """The last line of a server."""
        figures = self.figures()
        text = f"{self.requests:,} requests of {self.clients:,} clients in {figures['uptime_s']:,.0f} s"
        if self.refused:
            text += f", {self.refused:,} refused"
        for name in ("request", "inference"):
            if (found := figures[f"{name}_ms"]) is not None:
                text += f"; {name} p50 {found['p50']:.1f} ms, p95 {found['p95']:.1f} ms"
        if figures["batch_mean"] is not None:
            text += f"; {figures['batch_mean']:.1f} observations a pass"
        return text


def _percentiles(seconds: deque[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    middle, high = np.percentile(seconds, [50, 95]) * 1e3
    return {"p50": round(float(middle), 3), "p95": round(float(high), 3)}
