"""The fields ``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-11), for token buckets.

A bucket is told as the quota that fits it: as many as it holds, in the time in which it fills. Who never asks for more
than that in any such time is never refused.
"""

from math import ceil

from tricast.wire.http1 import Headers


def policy_window(rate: float, burst: int) -> int:
    """The whole seconds in which a bucket fills, rounded up; the draft knows no others (3.1.3), and not zero."""
    return max(ceil(burst / rate), 1)


def rate_limit_headers(name: str, rate: float, burst: int, *, left: int, seconds: float) -> Headers:
    """Both fields for one bucket.

    Args:
        name: of the policy.
        rate: how many a second.
        burst: how many it holds.
        left: how many may be taken now.
        seconds: until there are more, or until it is full.
    """
    policy = f'"{name}";q={burst};w={policy_window(rate, burst)}'
    limit = f'"{name}";r={left};t={ceil(seconds)}'
    return ((b"ratelimit-policy", policy.encode("ascii")), (b"ratelimit", limit.encode("ascii")))
