"""Who is at work on a set. Each process says so in the store itself, which is all that they need to have in common.

    ROOT/progress/3-of-10.json   share 3/10: which process it is, and what it has done

The file is gone once its share is done, and all are once the set is. So what is there is at work, has failed, or was
killed and has been silent since.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Event, Thread
from typing import Any

from seer_pipe.errors import UserError
from seer_pipe.share import Share
from seer_pipe.store import Store

FOLDER = "progress/"
BEAT = 10.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a process counts as dead
LOOK = 1.0  # seconds between two looks at another's signs of life
RUNNING, FAILED = "running", "failed"


class StoppedError(Exception):
    """The run was asked to stop by ``signal``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@dataclass(frozen=True)
class Sign:
    """The latest sign of life of the process that does a share."""

    share: str
    host: str
    pid: int
    state: str  # running or failed
    error: str
    seen: float  # when, in seconds since 1970 by the clock of its host
    done: int  # inputs of the share that have an outcome
    inputs: int  # of the share
    under_way: int  # of ``done``: in units that are not committed
    inputs_per_s: float

    def is_running(self) -> bool:
        """Whether the process may still run, as far as can be known here and now."""
        return self.state == RUNNING and not self.is_dead_here() and time.time() - self.seen < SILENCE

    def is_dead_here(self) -> bool:
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def path_of(share: Share) -> str:
    return f"{FOLDER}{share.number}-of-{share.of}.json"


def signs(store: Store, overlapping: Share | None = None) -> list[Sign]:
    """The signs of life in ``store``, of all shares or of those that have units in common with one."""
    found = []
    for entry in store.list(FOLDER):
        name = re.fullmatch(r"(\d+)-of-(\d+)\.json", entry.path.removeprefix(FOLDER))
        if name and (overlapping is None or overlapping.overlaps(Share(int(name[1]), int(name[2])))):
            with suppress(FileNotFoundError, ValueError, TypeError):  # gone since; not one of ours
                found.append(Sign(**json.loads(store.get(entry.path))))
    return found


def demand_alone(store: Store, share: Share) -> None:
    """UserError where another process is at work on units of ``share``.

    Whether one runs on another machine is known by its signs of life alone, and machines' clocks differ: so one that
    has not failed is watched until it has been silent for long enough.
    """
    me = socket.gethostname(), os.getpid()  # an earlier process of the same number, as in a container, is over
    there = (sign for sign in signs(store, share) if sign.state == RUNNING and (sign.host, sign.pid) != me)
    watched = {sign.share: sign for sign in there if not sign.is_dead_here()}
    until = time.monotonic() + SILENCE
    for sign in watched.values():
        print(f"share {sign.share} was at work on {sign.host} (process {sign.pid}); waiting whether it still is, "
              f"for {SILENCE:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    while watched and time.monotonic() < until:
        time.sleep(LOOK)
        now = {s.share: s for s in signs(store, share) if s.state == RUNNING}
        for name, sign in watched.items():
            if name in now and now[name] != sign:
                raise UserError(
                    f"{store.url}: share {name} is at work on {sign.host} (process {sign.pid}), with the same units"
                )
        watched = {name: sign for name, sign in watched.items() if name in now}


@contextmanager
def at_work(store: Store, share: Share, figures: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Give signs of life meanwhile, with ``figures`` (those of ``Sign``) in them. UserError as of ``demand_alone``."""
    path = path_of(share)
    demand_alone(store, share)

    def give(state: str, error: str = "") -> None:
        now = {name: figures()[name] for name in ("done", "inputs", "under_way", "inputs_per_s")}
        sign = Sign(str(share), socket.gethostname(), os.getpid(), state, error, time.time(), **now)
        store.put(path, json.dumps(asdict(sign)).encode())

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError, UserError):  # of a store that does not answer the work itself will tell
                give(RUNNING)

    ended = Event()
    heart = Thread(target=beat, name="progress", daemon=True)
    give(RUNNING)
    heart.start()
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
        raise
    finally:
        ended.set()
        heart.join()
        with suppress(OSError, UserError):
            if failure is None or isinstance(failure, StoppedError):
                store.delete(path)
            else:
                give(FAILED, (str(failure).splitlines() or [type(failure).__name__])[0])
