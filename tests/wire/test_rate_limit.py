"""RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-11): what they say, and how."""

import re

from hypothesis import given
from hypothesis import strategies as st

from tricast.wire.rate_limit import rate_limit_headers


def test_the_fields() -> None:
    assert rate_limit_headers("publish", 10.0, 100, left=50, seconds=4.2) == (
        (b"ratelimit-policy", b'"publish";q=100;w=10'),
        (b"ratelimit", b'"publish";r=50;t=5'),
    )


@given(
    st.floats(0.001, 10**6), st.integers(1, 10**6), st.integers(0, 10**6), st.floats(0, 10**6, allow_subnormal=False)
)
def test_they_are_lists_of_one_string_with_integers_that_promise_no_more_than_there_is(
    rate: float, burst: int, left: int, seconds: float
) -> None:
    fields = dict(rate_limit_headers("x", rate, burst, left=left, seconds=seconds))
    policy = re.fullmatch(rb'"x";q=([0-9]+);w=([1-9][0-9]*)', fields[b"ratelimit-policy"])
    limit = re.fullmatch(rb'"x";r=([0-9]+);t=([0-9]+)', fields[b"ratelimit"])
    assert policy is not None
    assert limit is not None
    assert int(policy[1]) <= rate * int(policy[2]) + burst * 1e-9 or int(policy[2]) == 1
    assert int(limit[2]) >= seconds
