"""Rounds are closed beside the server's event loop, and whoever waits for the next one is told."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dynamic_graph_fed_rl.deployment.coordinator import Closed, Coordinator

log = logging.getLogger(__name__)


class News:
    """Wakes coroutines, of any event loop, from any thread."""

    def __init__(self):
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """An event that is set by what is told from now on."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.add(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._waiting.discard(entry)

    def tell(self) -> None:
        with self._lock:
            for loop, event in self._waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)


class Closer:
    """A thread that closes rounds when they are due, and tries again every `retry_s` seconds while it cannot."""

    def __init__(self, coordinator: Coordinator, told: Callable[[Closed], None], retry_s: float):
        self._coordinator, self._told, self._retry_s = coordinator, told, retry_s
        self._due, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="close-rounds", daemon=True)

    def wake(self) -> None:
        """A round may be due."""
        if not self._thread.ident and not self._over.is_set():
            self._thread.start()
        self._due.set()

    def stop(self) -> None:
        """Finish the round that is being closed, if any, and close no more."""
        self._over.set()
        self._due.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            self._due.wait()
            self._due.clear()
            try:
                while not self._over.is_set() and (closed := self._coordinator.close_due()):
                    self._told(closed)
            except Exception:
                log.exception("round %d cannot be closed; trying again", self._coordinator.round)
                if not self._over.wait(self._retry_s):
                    self._due.set()
