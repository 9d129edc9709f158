"""The budget: who waits, who does not, and that everything is given back."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from ingest.budget import Budget, Lease

LIMIT = 1 << 20


@given(st.lists(st.lists(st.integers(0, 3 * LIMIT), max_size=4), max_size=40))
def test_all_is_given_back_and_none_waits_for_ever(inputs: list[list[int]]) -> None:
    async def one(lease: Lease, sizes: list[int]) -> None:
        for size in sizes:
            await lease.hold(size)
            await asyncio.sleep(0)
        lease.release()

    async def run() -> Budget:
        budget = Budget(LIMIT)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for sizes in inputs:
                group.create_task(one(await budget.admit(), sizes))
        return budget

    assert asyncio.run(run()).held == 0


def test_what_grows_past_twice_the_limit_is_bounded_by_the_lanes() -> None:
    most, count, size = 0, 200, 4 * LIMIT

    async def one(budget: Budget, lease: Lease) -> None:
        nonlocal most
        for held in range(0, size, size // 8):
            await lease.hold(held)
            most = max(most, budget.held)
            await asyncio.sleep(0)
        lease.release()

    async def run() -> None:
        budget = Budget(LIMIT)
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one(budget, await budget.admit()))

    asyncio.run(run())
    started = LIMIT // Budget.FIRST  # all that can be in when the first begins to grow
    assert most <= 2 * LIMIT + (started + Budget.LANES) * size // 8 + Budget.LANES * size


def test_admission_follows_the_mean_size() -> None:
    async def run() -> tuple[int, int]:
        budget = Budget(LIMIT)
        first = await budget.admit()
        before = budget.held
        first.release()
        for _ in range(300):
            lease = await budget.admit()
            budget.learn(LIMIT // 8)
            lease.release()
        await budget.admit()
        return before, budget.held

    first, later = asyncio.run(run())
    assert first == Budget.FIRST
    assert abs(later - LIMIT // 8) < LIMIT // 100


def test_what_is_parked_leaves_room_for_what_it_waits_for() -> None:
    """However many images wait for an earlier input that was put back, it is admitted."""

    async def run() -> None:
        budget = Budget(1 << 20)
        parked = 0
        while parked + 1000 <= budget.limit // 2:
            lease = await asyncio.wait_for(budget.admit(), 10)
            await lease.hold(1000)
            lease.park(1000)
            parked += 1000
        assert budget.held == parked
        for _ in range(99):
            budget.learn(1 << 30)  # inputs far larger than all there is
        (await asyncio.wait_for(budget.admit(), 10)).release()
        assert budget.held == parked

    asyncio.run(run())
