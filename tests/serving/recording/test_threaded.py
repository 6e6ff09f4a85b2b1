"""An observer in a thread of its own hears of every exchange, in order, whatever one of them does to it."""

import threading

from serve_app.recording.exchange import Exchange
from serve_app.recording.threaded import ThreadedObserver


class Recorder:
    """Fails at the exchanges of the key `bad`."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        self.threads: set[int] = set()

    def record(self, exchange: Exchange) -> None:
        self.threads.add(threading.get_ident())
        if exchange.key_name == "bad":
            raise ValueError
        self.seen.append(exchange.key_name)


def test_all_are_told_in_order_by_one_other_thread_though_some_fail() -> None:
    recorder = Recorder()
    threaded = ThreadedObserver(recorder)
    names = [str(i) for i in range(1_000)]
    for name in names:
        threaded.record(Exchange("chat", key_name=name))
        threaded.record(Exchange("chat", key_name="bad"))
    threaded.close()
    assert recorder.seen == names
    assert len(recorder.threads - {threading.get_ident()}) == len(recorder.threads) == 1


def test_nobody_waits_for_an_observer_that_hangs() -> None:
    goes_on = threading.Event()

    class Hanging(Recorder):
        def record(self, exchange: Exchange) -> None:
            goes_on.wait()
            super().record(exchange)

    recorder = Hanging()
    threaded = ThreadedObserver(recorder)
    for _ in range(10):
        threaded.record(Exchange("chat"))  # would hang here
    assert recorder.seen == []
    goes_on.set()
    threaded.close()
    assert len(recorder.seen) == 10
