"""Who may come in: a bounded queue for each model, by requests and by prompt tokens.

Beyond what the engine runs at once, `max_queue` sequences and `max_queue_tokens` prompt tokens may wait. Over that a
request is refused at once, with a `retry_after` from the rate at which requests were really finished. Each refused
client is promised the next free place after the one promised before, so that they do not all come back together.

One caller has at most a share of the places, so that the others find some.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

from coldstream.errors import InvalidRequest, NotReady, TooManyRequests

Clock = Callable[[], float]

_MEASURED = 64
_LONGEST = 120.0
MOST_SCORES = 262_144
"""Log probabilities that are held for one request; all requests together hold some times as many."""
_SCORES_AT_ONCE = 3


class Rate:
    """How many sequences a second are finished, over the last few dozen."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_MEASURED)

    def finished(self) -> None:
        """One more."""
        self._ends.append(self._clock())

    def per_second(self) -> float | None:
        """None before two were finished. Silence since the last one counts: a stalled engine's rate falls."""
        if len(self._ends) < 2:
            return None
        return (len(self._ends) - 1) / max(self._clock() - self._ends[0], 1e-3)


class AdmissionGate:
    """Counts one model's sequences from admission to the end. Event loop only.

    `share` is how much of the places one caller may have.
    """

    def __init__(
        self,
        *,
        running: int,
        max_queue: int,
        max_queue_tokens: int,
        share: float = 1.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.max_sequences = running + max_queue
        self._most_of_one = math.ceil(share * self.max_sequences)
        self._held: Counter[bytes] = Counter()
        self._max_tokens = max_queue_tokens
        self._clock = clock
        self.rate = Rate(clock)
        self._entered: dict[Ticket, float] = {}
        self._promised = 0.0
        self.sequences = 0
        self.waiting = 0
        self.waiting_tokens = 0
        self.scores = 0

    def enter(self, sequences: int, *, loading: float | None = None, caller: bytes = b"") -> Ticket:
        """Admit a request of so many sequences. `loading`: seconds until the model is expected, None when it is there.

        Raises:
            InvalidRequest: more sequences than can ever be admitted.
            NotReady: the queue is full and the model is still loading.
            TooManyRequests: the queue is full, or the caller has its share of it.
        """
        if sequences > self._most_of_one:
            message = f"{sequences} sequences, but at most {self._most_of_one} of one client run or wait here"
            raise InvalidRequest(message, field="n")
        if self.sequences + sequences > self.max_sequences:
            raise self.refusal(
                f"{self.sequences} sequences already run or wait (the most is {self.max_sequences})", loading
            )
        if self._held[caller] + sequences > self._most_of_one:
            why = f"{self._held[caller]} sequences of yours already run or wait (the most of one client is "
            raise self.refusal(f"{why}{self._most_of_one})", loading)
        ticket = Ticket(self, sequences, caller)
        self._held[caller] += sequences
        self._entered[ticket] = self._clock()
        self.sequences += sequences
        self.waiting += sequences
        return ticket

    def claim(self, ticket: Ticket, tokens: int) -> None:
        """Count a request's prompt tokens as waiting; one request may always wait alone, however long.

        Raises:
            TooManyRequests: too many prompt tokens wait already.
        """
        if self.waiting_tokens and self.waiting_tokens + tokens > self._max_tokens:
            raise self.refusal(
                f"{self.waiting_tokens} prompt tokens already wait (the most is {self._max_tokens})", None
            )
        ticket.tokens = tokens
        self.waiting_tokens += tokens

    def hold(self, ticket: Ticket, scores: int) -> None:
        """Count the log probabilities that a request's answer may hold, until its block is left.

        Raises:
            TooManyRequests: others hold too many already.
        """
        most = _SCORES_AT_ONCE * MOST_SCORES
        if scores and self.scores + scores > most:
            raise self.refusal(f"answers hold up to {self.scores} log probabilities already (the most is {most})", None)
        ticket.scores = scores
        self.scores += scores

    def started(self, ticket: Ticket) -> None:
        """The first token is there: the request waits no longer."""
        if ticket.waiting:
            ticket.waiting = False
            self.waiting -= ticket.sequences
            self.waiting_tokens -= ticket.tokens

    def leave(self, ticket: Ticket, *, finished: bool) -> None:
        """The request has ended; once counts. `finished` when it ran to its end, so that it counts for the rate."""
        self.started(ticket)
        if self._entered.pop(ticket, None) is None:
            return  # when its last token was there
        self._held[ticket.caller] -= ticket.sequences
        if not self._held[ticket.caller]:
            del self._held[ticket.caller]
        self.sequences -= ticket.sequences
        if finished:
            for _ in range(ticket.sequences):
                self.rate.finished()

    def refusal(self, why: str, loading: float | None) -> NotReady | TooManyRequests:
        """The error for a request that finds no place."""
        if loading is not None:
            seconds = min(max(loading, 1.0), _LONGEST)
            return NotReady(f"the model is loading and {why}; come back in {seconds:.0f} s", retry_after=seconds)
        seconds = self.retry_after()
        return TooManyRequests(f"{why}; come back in {seconds:.0f} s", retry_after=seconds)

    def retry_after(self) -> float:
        """Seconds until a place is free that no other request was promised."""
        now = self._clock()
        rate = self.rate.per_second()
        # Before anything was measured, the oldest request's age is the best lower bound of how long one takes.
        step = 1 / rate if rate else max(now - min(self._entered.values(), default=now), 1.0)
        # No request waits longer than the whole queue takes: some of those who were promised a place never come back.
        self._promised = min(max(self._promised, now) + step, now + self.max_sequences * step)
        return min(max(self._promised - now, 1.0), _LONGEST)


class Ticket:
    """One admitted request; use it as a context manager, and say `finished()` when it ran to its end."""

    def __init__(self, gate: AdmissionGate, sequences: int, caller: bytes = b"") -> None:
        self.gate = gate
        self.sequences = sequences
        self.caller = caller
        self.tokens = self.scores = 0
        self.waiting = True
        self._finished = False

    def claim(self, tokens: int) -> None:
        """See `Gate.claim`."""
        self.gate.claim(self, tokens)

    def hold(self, scores: int) -> None:
        """See `Gate.hold`."""
        self.gate.hold(self, scores)

    def started(self) -> None:
        """See `Gate.started`."""
        self.gate.started(self)

    def finished(self) -> None:
        """Count this request for the measured rate when it leaves."""
        self._finished = True

    def leave(self) -> None:
        """Give the place back, now or when the block is left, whatever comes first."""
        self.gate.leave(self, finished=self._finished)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.gate.scores -= self.scores
        self.scores = 0
        self.leave()
