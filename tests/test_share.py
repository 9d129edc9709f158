"""Shares of work are a partition, and their overlap is known from their numbers alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_pipe.errors import UserError
from seer_pipe.share import Share

shares = st.integers(1, 40).flatmap(lambda of: st.builds(Share, st.integers(0, of - 1), st.just(of)))


@given(st.integers(0, 200), st.integers(1, 40))
def test_all_shares_together_have_everything_once(things: int, of: int) -> None:
    parts = [Share(number, of).part(range(things)) for number in range(of)]
    assert sorted(thing for part in parts for thing in part) == list(range(things))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(shares, shares)
def test_an_overlap_is_something_in_common(one: Share, other: Share) -> None:
    everything = range(one.of * other.of)
    assert one.overlaps(other) == bool(set(one.part(everything)) & set(other.part(everything)))


def test_as_it_is_written() -> None:
    assert Share.parse("3/10") == Share(3, 10)
    assert str(Share.parse("3/10")) == "3/10"
    assert Share.parse("") == Share.parse("0/1") == Share()


@pytest.mark.parametrize("text", ["10/10", "0/0", "3", "-1/3", "1/3/", "a/b"])
def test_what_is_none_is_said(text: str) -> None:
    with pytest.raises(UserError, match="the shares of 10 are 0/10 to 9/10"):
        Share.parse(text)
