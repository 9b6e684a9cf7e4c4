"""Passing on what comes, for many connections, in one task: none of their own is woken for it.

To wake a task for each event of each stream costs more than the event: trio's scheduler, and a call of the kernel to
wait once more. Here the kernel is told once what to look at, by an epoll of the proxy's own, in which trio sees a
descriptor like any other; and each piece is taken and sent on where it is found. Only who has to wait for room, or has
something to end, goes on in a task of its own.
"""

import select
from collections.abc import Callable

import trio


class _Flow:
    """What is done whenever something comes, and the task that wants to be told of its end."""

    __slots__ = ("failure", "step", "task")

    def __init__(self, step: Callable[[], bool], task: trio.lowlevel.Task) -> None:
        self.step = step
        self.task = task
        self.failure: Exception | None = None


class Pump:
    """All flows of a proxy, and the task that keeps them going."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._flows: dict[int, _Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    async def run(self) -> None:
        """Keeps them going until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            # A step for each that has something, as trio would give each task: a timer that has run out meanwhile must
            # not come before some of them.
            for descriptor in self._ready():
                flow = self._flows.get(descriptor)
                if flow is not None:  # a step of another one may have ended it
                    self._step(descriptor, flow)

    def _ready(self) -> list[int]:
        if len(self._flows) == 1:  # it is that one
            return [*self._flows]
        return [descriptor for descriptor, _ in self._epoll.poll(0, max(1, len(self._flows)))]

    def close(self) -> None:
        """Gives its descriptor back."""
        self._epoll.close()

    async def flow(self, descriptor: int, step: Callable[[], bool]) -> None:
        """Calls ``step`` whenever something has come in, and until it returns False.

        Cancelling ends it between two steps. The descriptor must not be closed, nor given to another flow, before.

        Args:
            descriptor: of a socket.
            step: takes what has come in, which may be nothing after all. Must not wait.

        Raises:
            Exception: what ``step`` raised.
        """
        self._epoll.register(descriptor, select.EPOLLIN)
        flow = self._flows[descriptor] = _Flow(step, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(descriptor)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        failure, flow.failure = flow.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame, and the flow

    def _step(self, descriptor: int, flow: _Flow) -> None:
        try:
            if flow.step():
                return
        except Exception as failure:  # noqa: BLE001 - raised again in the task whose it is
            flow.failure = failure
        self._forget(descriptor)
        trio.lowlevel.reschedule(flow.task)

    def _forget(self, descriptor: int) -> None:
        del self._flows[descriptor]
        self._epoll.unregister(descriptor)
