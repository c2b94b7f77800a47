"""The thread in which the policy computes, for all clients at once.

The event loop answers pings and greets new clients while a pass runs. What has come in meanwhile is the next batch;
nobody is kept waiting for a batch to fill.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vlatrack.errors import ServingError, VlatrackError
from vlatrack.inference.observation import Observation
from vlatrack.inference.policy import ActingPolicy, ActionChunk, Moment, Route
from vlatrack.serving.latency import Latencies

_log = logging.getLogger(__name__)
_ENDING_S = 5.0


@dataclass
class Frame:
    """What a client saw at one moment; its images are encoded when a chunk needs them, and once."""

    observation: Observation
    moment: Moment | None = None


@dataclass(frozen=True)
class _Request:
    frames: Sequence[Frame]
    answer: "asyncio.Future[ActionChunk]"


class InferenceWorker:
    """Asks a policy for the chunks of many clients."""

    def __init__(self, policy: ActingPolicy, latencies: Latencies, *, route: Route, largest_batch: int) -> None:
        """
        Args:
            largest_batch: observations in one pass.
        """
        self._policy, self._latencies, self._route, self._largest = policy, latencies, route, largest_batch
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def chunk(self, frames: Sequence[Frame]) -> ActionChunk:
        """The chunk after frames that were checked, the oldest first.

        Raises:
            ServingError: the policy failed.
        """
        answer: asyncio.Future[ActionChunk] = self._loop.create_future()
        self._waiting.put(_Request(frames, answer))
        return await answer

    def close(self) -> None:
        """End the thread after the pass that it is in, or leave it behind if that takes longer than a few seconds."""
        self._waiting.put(None)
        self._thread.join(_ENDING_S)

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:
            batch = [request]
            while len(batch) < self._largest:
                try:
                    another = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if another is None:
                    self._waiting.put(None)
                    break
                batch.append(another)
            self._answer(batch)

    def _answer(self, batch: Sequence[_Request]) -> None:
        start = time.perf_counter()
        found: Sequence[ActionChunk | VlatrackError]
        try:
            found = self._chunks([request.frames for request in batch])
        except Exception as error:
            if len(batch) > 1:  # one client's observation costs no other client its answer
                for request in batch:
                    self._answer([request])
                return
            found = [_as_told(error)]
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
            self._loop.call_soon_threadsafe(self._hand_over, batch, found, time.perf_counter() - start)

    def _chunks(self, rows: Sequence[Sequence[Frame]]) -> list[ActionChunk]:
        new = [frame for row in rows for frame in row if frame.moment is None]
        for frame, moment in zip(new, self._policy.see_batch([frame.observation for frame in new]), strict=True):
            frame.moment = moment
        seen = [[frame.moment for frame in row if frame.moment is not None] for row in rows]
        return self._policy.act_on(seen, route=self._route)

    def _hand_over(
        self, batch: Sequence[_Request], found: Sequence[ActionChunk | VlatrackError], seconds: float
    ) -> None:
        """In the event loop."""
        self._latencies.add_batch(len(batch), seconds)
        for request, chunk in zip(batch, found, strict=True):
            if request.answer.cancelled():
                continue
            if isinstance(chunk, VlatrackError):
                request.answer.set_exception(chunk)
            else:
                request.answer.set_result(chunk)


def _as_told(error: Exception) -> VlatrackError:
    """What a client is told: its own mistake, or that it made none."""
    if isinstance(error, VlatrackError):
        return error
    _log.error("the policy failed", exc_info=error)
    return ServingError(f"the policy failed ({type(error).__name__}); the server's log has the reason")
