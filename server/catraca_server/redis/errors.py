"""What can go wrong with a store. The texts are for the log, not for callers: they may quote Redis."""

from enum import Enum


class StoreProblem(Enum):
    """Why a store gave no usable reply: the causes that an operator would tell apart."""

    NOT_IN_TIME = "not in time"
    DISCONNECTED = "disconnected"
    """The connection was closed under a request, and the reply was lost with it."""
    CANNOT_CONNECT = "cannot connect"
    REFUSED = "refused"
    """It refused the command, or catraca refused the store as it is set up."""
    FULL = "full"
    """Its memory has reached maxmemory."""
    READ_ONLY = "read-only"
    """It accepts no writes: it cannot save them, or has too few replicas."""
    NOT_PRIMARY = "no longer a primary"
    SLOT_UNCOVERED = "slot uncovered"
    """No node of the cluster that can be reached serves the key."""
    NOT_REPLICATED = "not replicated"
    LOADING = "loading"
    MALFORMED_REPLY = "malformed reply"
    """What it replied, or has stored, is not what belongs there."""
    SHUTTING_DOWN = "shutting down"
    """Not the store but this process."""


class StoreUnavailable(Exception):
    """The store gave no usable reply: a read has no result, and a write may have been done or not."""

    def __init__(self, detail: str, problem: StoreProblem) -> None:
        super().__init__(detail, problem)
        self.detail = detail
        self.problem = problem

    def __str__(self) -> str:
        return self.detail


class NotDurable(StoreUnavailable):
    """A write was done, but too few replicas acknowledged it in time: a failover might lose it."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, StoreProblem.NOT_REPLICATED)


class StoreRefused(StoreUnavailable):
    """This store cannot be used as it is: why, and what to do about it."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, StoreProblem.REFUSED)


class StoreLoading(StoreUnavailable):
    """The store is there and still reading its data."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, StoreProblem.LOADING)


class Overloaded(Exception):
    """More is waiting for the store than it can be expected to answer in time."""
