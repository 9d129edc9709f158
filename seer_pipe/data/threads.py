"""Threads that never hold up the end of the process: daemons, left behind where they hang in a request."""

from __future__ import annotations

import contextlib
import queue
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_Work = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


def begin(name: str, function: Callable[..., V], *arguments: Any) -> Future[V]:
    """Run ``function`` in a thread of its own."""
    future: Future[V] = Future()
    Thread(target=_run, args=(future, function, arguments), name=name, daemon=True).start()
    return future


def _run(future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # the one who waits for it is to raise it
            future.set_exception(error)


class Pool:
    """So many threads that take work in the order in which it comes."""

    def __init__(self, threads: int, name: str) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads = [Thread(target=self._loop, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._threads)

    def submit(self, function: Callable[..., V], *arguments: Any) -> Future[V]:
        future: Future[V] = Future()
        self._work.put((future, function, arguments))
        return future

    def waiting(self) -> int:
        """Calls that no thread has taken yet."""
        return self._work.qsize()

    def close(self, patience: float = 1.0) -> None:
        """Drop what waits, end the threads, and leave behind what has not ended after ``patience`` seconds each."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._work.get_nowait()
                if item is not None:
                    item[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(patience)
            patience = patience if not thread.is_alive() else 0.0

    def _loop(self) -> None:
        while (item := self._work.get()) is not None:
            _run(*item)
            del item  # or the last result would be held until the next call


class Kept(Generic[K, V]):
    """What was made of a key: made once, whoever asks meanwhile, and kept while among the ``most`` last used."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, Future[V]] = OrderedDict()
        self._lock = Lock()

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def __contains__(self, key: K) -> bool:
        """Whether it is there, or on its way."""
        with self._lock:
            return key in self._kept

    def get(self, key: K, make: Callable[[K], V]) -> V:
        with self._lock:
            future = self._kept.get(key)
            if mine := future is None:
                future = self._kept[key] = Future()
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        if mine:
            try:
                future.set_result(make(key))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)  # another try may succeed
                future.set_exception(error)
        return future.result()


def at_once(key: object) -> Any:
    """For ``Kept.get``, by who does not want to wait."""
    raise BlockingIOError(f"{key}: not there yet")
