"""The tape: who holds what, when it is freed, how gradients are summed, what backward keeps."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from estimator.architecture.autograd import run_backward
from estimator.architecture.events import Storage, peak, totals
from estimator.architecture.tape import PASS, ROUNDS_AT_ENDS, Tape, Tensor

KB = 1024


def made(tape: Tape, grad: bool = True, component: str | None = None) -> Tensor:
    """A tensor of 1 KiB that exists before anything is played."""
    return Tensor(KB // 2, 2, grad, Storage(KB, component))


def alive(tape: Tape) -> int:
    """Bytes that the tape's events leave allocated."""
    return sum(sign * storage.allocated for storage, sign in tape.events)


def weight(count: int = KB // 2) -> Tensor:
    return Tensor(count, 2, True, None, parameter=True)


def test_a_tensor_is_freed_with_its_last_reference() -> None:
    tape = Tape()
    tensor = tape.new(KB, 2)
    tape.alias(tensor)
    tape.drop(tensor)
    assert alive(tape) == 2 * KB
    tape.drop(tensor)
    assert alive(tape) == 0
    assert [sign for _, sign in tape.events] == [1, -1]


def test_what_backward_needs_lives_on() -> None:
    tape = Tape()
    x = tape.new(KB, 2)
    y = tape.op(KB, 2, (x, weight(KB)), saves=(x,))
    tape.drop(x)
    assert alive(tape) == 4 * KB
    tape.drop(y)
    assert alive(tape) == 2 * KB
    assert x.storage is not None
    assert x.storage.kind == "activations"


def test_nothing_is_saved_where_nothing_requires_grad() -> None:
    tape = Tape()
    x = tape.new(KB, 2)
    y = tape.op(KB, 2, (x,), saves=(x,), saves_out=True, aux=(512,))
    tape.drop(x, y)
    assert alive(tape) == 0
    assert not tape.nodes
    assert not y.grad


def test_without_recording_nothing_is_saved() -> None:
    tape = Tape(recording=False)
    x = tape.new(KB, 2, grad=True)
    y = tape.op(KB, 2, (x,), saves=(x,))
    tape.drop(x, y)
    assert alive(tape) == 0


def test_backward_frees_what_was_saved_and_leaves_gradients() -> None:
    tape = Tape()
    x = made(tape)
    y = tape.op(KB, 2, (weight(KB), x), saves=(x,), saves_out=True, aux=(4 * KB,))
    tape.take_events()
    reached = run_backward(tape, y, Storage(2 * KB, None))
    sizes, _ = totals(tape.events)
    assert sizes["gradients"] == 2 * KB
    # The mask, the output's gradient and nothing else went; the input's gradient came.
    assert sizes["activations"] == -4 * KB
    assert reached[id(x)].refs == 1
    assert y.storage is not None
    assert y.storage.refs == 1


def test_a_passed_gradient_is_the_incoming_one() -> None:
    tape = Tape()
    a, b = made(tape), made(tape)
    total = tape.op(KB // 2, 2, (a, b), grads=(PASS, PASS))
    tape.take_events()
    grad = Storage(KB, None)
    reached = run_backward(tape, total, grad)
    assert reached[id(a)] is reached[id(b)] is grad
    assert tape.events == []


def test_a_second_gradient_is_summed_into_the_first_where_it_is_unshared() -> None:
    tape = Tape()
    x = made(tape)
    first = tape.op(KB // 2, 2, (x,))
    second = tape.op(KB // 2, 2, (x,))
    out = tape.op(KB // 2, 2, (first, second))
    tape.take_events()
    run_backward(tape, out, Storage(KB, None))
    highest, _ = peak(tape.events)
    # Two gradients of the branches, then x's first and second; the sum needs no third.
    assert highest == 2 * KB
    assert alive(tape) == 0  # the incoming gradient went, the input's came


def test_a_second_gradient_is_not_summed_into_a_view() -> None:
    made_by_backward = {}
    for viewed in (False, True):
        tape = Tape()
        x = made(tape)
        first = tape.op(KB // 2, 2, (x,), viewed=viewed)
        second = tape.op(KB // 2, 2, (x,), viewed=viewed)
        out = tape.op(KB // 2, 2, (first, second), grads=(PASS, PASS))
        tape.take_events()
        run_backward(tape, out, Storage(KB, None))
        made_by_backward[viewed] = sum(sign > 0 for _, sign in tape.events)
    # Two gradients; where they are views, their sum is a third.
    assert made_by_backward == {False: 2, True: 3}


def test_accumulated_gradients_are_freed_once_added() -> None:
    for accumulate, left in ((False, 2 * KB), (True, 0)):
        tape = Tape(accumulate=accumulate)
        x = made(tape, grad=False)
        y = tape.op(KB, 2, (weight(KB), x), saves=(x,))
        tape.take_events()
        run_backward(tape, y, Storage(2 * KB, None))
        sizes, _ = totals(tape.events)
        assert sizes.get("gradients", 0) == left


def test_temporaries_are_held_while_gradients_are_made() -> None:
    tape = Tape()
    x = made(tape)
    y = tape.op(KB // 2, 2, (x,), temporaries=(8 * KB, 4 * KB))
    tape.take_events()
    run_backward(tape, y, Storage(KB, None))
    highest, _ = peak(tape.events)
    assert highest == 13 * KB
    assert alive(tape) == 0  # the incoming gradient went, the input's came


def test_a_slice_fills_its_source_again() -> None:
    tape = Tape()
    x = made(tape)
    assert x.storage is not None
    part = tape.view(x, KB // 8, grad=x.size)
    assert part.storage is x.storage
    assert tape.events == []
    reached = run_backward(tape, part, Storage(KB // 4, None))
    assert reached[id(x)].requested == KB


def test_parts_of_one_tensor_are_joined_when_all_gradients_are_there() -> None:
    tape = Tape()
    x = made(tape)
    parts = tape.split(x, (KB // 4, KB // 8, KB // 8), x.size)
    out = tape.op(KB // 4, 2, parts)
    tape.take_events()
    reached = run_backward(tape, out, Storage(KB // 2, None))
    assert reached[id(x)].requested == KB
    highest, _ = peak(tape.events)
    # Three parts in blocks of 512 B, less the incoming 512 B that are freed, and then the whole.
    assert highest == 3 * 512 - 512 + KB


def test_checkpointing_keeps_nothing_and_its_second_pass_ends_early() -> None:
    first = Tape(discard=True)
    x = made(first)
    hidden = first.op(KB, 2, (x, weight(KB)), saves=(x,))
    out = first.op(KB, 2, (hidden, weight(KB)), saves=(hidden,))
    first.drop(hidden, out)
    assert alive(first) == 0
    assert first.saving_nodes == 2

    second = Tape(stop_after=first.saving_nodes)
    hidden = second.op(KB, 2, (x, weight(KB)), saves=(x,))
    out = second.op(KB, 2, (hidden, weight(KB)), saves=(hidden,))
    second.drop(hidden)
    # The last saving operation is reached, not run: its output is never made.
    assert alive(second) == 2 * KB
    highest, _ = peak(second.events)
    assert highest == 2 * KB
    run_backward(second, out, Storage(2 * KB, None))
    sizes, _ = totals(second.events)
    assert sizes["gradients"] == 4 * KB


def test_what_a_custom_function_keeps_lives_as_long_as_the_graph() -> None:
    tape = Tape(discard=True)
    x = tape.new(KB, 2)
    out = tape.op(KB, 2, (x, weight(KB)), saves=(x,), pins=(x,))
    tape.drop(x, out)
    # Checkpointing discards what is saved, but does not see what is pinned.
    assert alive(tape) == 2 * KB
    run_backward(tape, out, Storage(2 * KB, None))
    tape.take_events()
    tape.release_pins()
    assert alive(tape) == -2 * KB
    assert x.storage is not None
    assert x.storage.kind == "activations"


@given(
    sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=8),
    held=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_a_chain_of_operations_ends_as_it_began(sizes: list[int], held: list[bool]) -> None:
    """Forward and backward of any chain leave the parameters' gradients and nothing else."""
    tape = Tape()
    x = Tensor(sizes[0], 2, True, Storage(2 * sizes[0], None))
    start = x
    parameters = 0
    for size, saving in zip(sizes, held, strict=False):
        saves = (x,) if saving else ()
        out = tape.op(size, 2, (weight(size), x), saves=saves)
        parameters += out.storage.allocated  # type: ignore[union-attr]
        if x is not start:
            tape.drop(x)
        x = out
    grad = Storage(x.size, None)
    reached = run_backward(tape, x, grad)
    tape.drop(x)
    for storage in reached.values():
        storage.component = "reached"
    net, requested = totals(tape.events)
    # The incoming gradient was made elsewhere, but is freed here.
    net["temporaries"] = net.get("temporaries", 0) + grad.allocated
    assert net.pop("gradients") == parameters
    assert net.pop("reached") == sum(storage.allocated for storage in reached.values())
    assert not any(net.values())
    assert requested >= 0 or requested == -grad.requested
    running = 0
    for storage, sign in tape.events:
        running += sign * storage.allocated
        assert running + grad.allocated >= 0


@given(
    count=st.integers(1, 60),
    keeps=st.booleans(),
    shares=st.booleans(),
    temporaries=st.lists(st.integers(1, 9000), max_size=2).map(tuple),
    sizes=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)
def test_a_long_loop_is_as_if_every_round_were_played(
    count: int, keeps: bool, shares: bool, temporaries: tuple[int, ...], sizes: tuple[int, int]
) -> None:
    """A recurrence that reads slices of one tensor, and keeps what backward needs of each round."""

    def loop(every: bool) -> list[Any]:
        tape = Tape()
        whole, state = made(tape), tape.new(sizes[0], 4, grad=True)
        whole.count *= count
        for _ in range(count) if every else tape.rounds(count):
            part = tape.view(whole, sizes[1], whole.size if shares else PASS)
            saves = (state, part) if keeps else ()
            moved = tape.op(sizes[0], 4, (state, part), saves, temporaries=temporaries)
            tape.drop(state, part)
            state = moved
        forward = tape.take_events()
        tape.drop(state)
        run_backward(tape, state, Storage(state.size, None))
        return [(peak(events)[0], totals(events)) for events in (forward, tape.take_events())]

    assert loop(every=False) == loop(every=True)


def test_of_a_long_loop_few_rounds_are_played() -> None:
    assert list(Tape().rounds(3)) == [0, 1, 2]
    assert len(list(Tape().rounds(10**6))) == 2 * ROUNDS_AT_ENDS + 1
