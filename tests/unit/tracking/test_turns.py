"""Few threads at a time write to MLflow's database, and a tracker that closes is not kept waiting by the others."""

import threading

from thawline.tracking._turns import Turns


def test_no_more_than_so_many_have_a_turn_at_a_time() -> None:
    turns, inside, most = Turns(2), [0], [0]
    lock, together = threading.Lock(), threading.Barrier(2)

    def work(number: int) -> None:
        with turns.turn(number):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            together.wait(10)  # two are in at once
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most[0] == 2


def test_whoever_is_about_to_end_goes_first_and_the_others_after_it() -> None:
    turns, order = Turns(1), list[str]()
    waiting = threading.Semaphore(0)

    def work(name: str) -> None:
        waiting.release()
        with turns.turn(name):
            order.append(name)

    with turns.turn("first"):
        turns.hurry("last")
        threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "last")]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=10)
    threads[2].join(10)
    assert order == ["last"], "the others wait, though there is room"
    turns.finished("last")
    for thread in threads:
        thread.join(10)
    assert sorted(order) == ["last", "one", "two"]


def test_a_turn_is_given_back_after_an_error() -> None:
    turns = Turns(1)
    for _ in range(2):
        try:
            with turns.turn("one"):
                raise RuntimeError("refused")
        except RuntimeError:
            continue
    with turns.turn("other"):
        pass
