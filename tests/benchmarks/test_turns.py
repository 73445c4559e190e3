"""Rounds: everyone once, in an order that differs and comes again."""

from benchmarks.turns import in_turn

NAMES = ("none", "ours", "theirs", "others")


def test_everyone_has_one_turn_a_round_and_an_order_comes_again() -> None:
    rounds = [in_turn(NAMES, number) for number in range(20)]
    assert all(sorted(order) == sorted(NAMES) for order in rounds)
    assert rounds == [in_turn(NAMES, number) for number in range(20)]


def test_nobody_always_follows_the_same_one() -> None:
    orders = [in_turn(NAMES, number) for number in range(20)]
    before = {order[order.index("ours") - 1] for order in orders if order.index("ours")}
    assert before == {"none", "theirs", "others"}
