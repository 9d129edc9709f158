"""How many bytes may be under way at once, between a request and the place in the shard."""

from __future__ import annotations

import asyncio


class Budget:
    """``limit`` bytes for all inputs under way.

    An input is admitted with the mean size of those that came (``learn``), and whatever more it turns out to hold
    is let in without waiting: to pause a half-read answer would only make it time out. So the limit is overshot by
    little, as long as sizes are near their mean. Past twice the limit, only ``LANES`` inputs at a time may grow;
    this bounds the memory whatever servers send.
    """

    LANES = 4
    LEAST = 32 << 10  # bytes taken for an input, which also bounds how many are under way
    FIRST = 512 << 10  # bytes, the mean size before any is known, which weighs as much as WEIGHT inputs
    WEIGHT, LONGEST = 8, 64  # inputs; the mean is that of the last LONGEST or so

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._mean, self._seen = float(self.FIRST), self.WEIGHT
        self._freed = asyncio.Event()
        self.lanes = asyncio.Semaphore(self.LANES)

    async def admit(self) -> Lease:
        """Wait until there is room for one more input."""
        size = min(max(self.LEAST, int(self._mean)), self.limit // 2)  # what is parked never takes the other half
        while self.held and self.held + size > self.limit:
            self._freed.clear()
            await self._freed.wait()
        self.held += size
        return Lease(self, size)

    def change(self, by: int) -> None:
        self.held += by
        if by < 0:
            self._freed.set()

    def learn(self, size: int) -> None:
        """An input turned out to have ``size`` bytes."""
        self._seen = min(self._seen + 1, self.LONGEST)
        self._mean += (size - self._mean) / self._seen


class Lease:
    """One input's part of the budget."""

    def __init__(self, budget: Budget, admitted: int) -> None:
        self._budget, self._admitted = budget, admitted
        self._taken = admitted
        self._lane = False

    async def hold(self, size: int) -> None:
        """Say that the input is about to hold ``size`` bytes."""
        budget = self._budget
        if size > self._taken and budget.held > 2 * budget.limit and not self._lane:
            await budget.lanes.acquire()
            self._lane = True
        taken = max(size, self._admitted)
        budget.change(taken - self._taken)
        self._taken = taken

    def park(self, size: int) -> None:
        """Say that of the input only ``size`` bytes are left, which wait for their place in the shard."""
        if self._lane:
            self._budget.lanes.release()
            self._lane = False
        self._budget.change(size - self._taken)
        self._taken = self._admitted = size

    def release(self) -> None:
        self.park(0)
