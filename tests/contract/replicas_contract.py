"""What every driver's ``Replicas`` must do, whatever runs behind it.

To hold a driver to it, subclass ``ReplicasContract`` in a ``test_*.py`` and give it a ``bench`` fixture: a
``ReplicasBench`` on which nothing runs yet. The bench moves the world (a test cannot know how a server is made to crash);
all that is asserted goes through the port.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import pytest

from fermion.domain.leases import Slice
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaSpec, ReplicaState
from fermion.domain.workloads import ExitCause, Grant
from fermion.errors import Conflict, DriverCannot, NotFound
from fermion.ports import Replicas

LONG = timedelta(minutes=10)
NOBODY = "inf-nobody-404-r1-1"
ENDING = timedelta(seconds=1)


class ReplicasBench(Protocol):
    """A driver's replicas with the levers to move them. Every lever is bounded in time."""

    replicas: Replicas

    def spec(self, *, number: int = 1) -> ReplicaSpec:
        """A server with one port, asked whether it has started and whether it is ready; it waits for the levers below.

        Its backoff is long enough to be seen, and it is never settled while a test lasts.
        """
        ...

    def hold(self, name: str) -> None:
        """Its processes do not open their port until ``release``; it need not be prepared yet."""
        ...

    def release(self, name: str) -> None:
        """They do now."""
        ...

    def unready(self, name: str) -> None:
        """Its readiness probe fails from now on."""
        ...

    def ready(self, name: str) -> None:
        """It succeeds again."""
        ...

    def crash(self, name: str, code: int) -> None:
        """Its present process ends by itself with that code."""
        ...

    def crash_always(self, name: str) -> None:
        """Every process of it ends at once, the present one too."""
        ...

    def lose(self, name: str) -> None:
        """Let it vanish without an exit record."""
        ...

    def say(self, name: str, text: str) -> None:
        """Let it print that text and a line's end; on return it can be read."""
        ...

    def ignore_term(self, name: str) -> None:
        """From now on it goes on after a stop until its grace is over."""
        ...

    def pass_time(self, duration: timedelta) -> None:
        """Let that much time pass, or at least until what is due after it has begun."""
        ...

    def until(self, name: str, state: ReplicaState, *, starts: int = 1) -> ReplicaSeen:
        """Look until it is in that state after at least so many starts; fails the test when that takes too long."""
        ...


def grant(token: int = 1) -> Grant:
    """One declared slot."""
    return Grant(token=token, slices=(Slice("n0", ("slot-0",)),), devices_are_declared=True)


def run(bench: ReplicasBench, *, number: int = 1, token: int = 1) -> str:
    """Prepare and resume; the name of a replica that is ready."""
    spec = bench.spec(number=number)
    bench.replicas.prepare(spec)
    bench.replicas.resume(spec.name, grant(token))
    bench.until(spec.name, ReplicaState.READY)
    return spec.name


def loop(bench: ReplicasBench) -> str:
    """The name of a replica that waits for its next start after the third."""
    name = run(bench)
    bench.crash_always(name)
    bench.until(name, ReplicaState.BACKING_OFF, starts=2)
    return name


class ReplicasContract:
    """The tests. Each begins with a bench on which nothing runs."""

    # --- from absent to ready ---------------------------------------------------------------------------------------

    def test_what_was_never_prepared_is_absent(self, bench: ReplicasBench) -> None:
        seen = bench.replicas.look(NOBODY)
        assert (seen.state, seen.token, seen.exec_at, seen.starts) == (ReplicaState.ABSENT, None, None, 0)
        assert seen.is_gone
        assert bench.replicas.names() == []

    def test_what_is_prepared_waits_and_holds_nothing(self, bench: ReplicasBench) -> None:
        spec = bench.spec()
        bench.replicas.prepare(spec)
        seen = bench.replicas.look(spec.name)
        assert (seen.state, seen.token, seen.exec_at, seen.starts) == (ReplicaState.SUSPENDED, None, None, 0)
        assert (seen.endpoints, seen.is_gone) == ({}, False)
        assert bench.replicas.names() == [spec.name]

    def test_preparing_again_finds_the_first(self, bench: ReplicasBench) -> None:
        name = run(bench, token=3)
        bench.replicas.prepare(bench.spec())
        seen = bench.replicas.look(name)
        assert (seen.state, seen.token, seen.starts) == (ReplicaState.READY, 3, 1)
        assert bench.replicas.names() == [name]

    def test_a_granted_replica_starts_and_is_ready_when_its_probes_say_so(self, bench: ReplicasBench) -> None:
        spec = bench.spec()
        bench.hold(spec.name)
        bench.replicas.prepare(spec)
        bench.replicas.resume(spec.name, grant(7))
        starting = bench.until(spec.name, ReplicaState.STARTING)
        assert (starting.token, starting.starts, starting.ready_at) == (7, 1, None)
        assert list(starting.endpoints) == ["http"]
        bench.release(spec.name)
        ready = bench.until(spec.name, ReplicaState.READY)
        assert (ready.token, ready.starts, ready.exit, ready.last_exit) == (7, 1, None, None)
        assert ready.endpoints == starting.endpoints
        assert ready.exec_at is not None
        assert ready.ready_at is not None
        assert ready.exec_at.tzinfo is not None
        assert ready.exec_at == ready.started_at == starting.exec_at
        assert ready.exec_at <= ready.ready_at <= ready.observed_at

    def test_a_replica_is_unready_while_its_readiness_probe_fails(self, bench: ReplicasBench) -> None:
        name = run(bench)
        before = bench.replicas.look(name)
        bench.unready(name)
        unready = bench.until(name, ReplicaState.UNREADY)
        bench.ready(name)
        after = bench.until(name, ReplicaState.READY)
        for seen in (unready, after):
            assert (seen.starts, seen.endpoints, seen.exec_at) == (1, before.endpoints, before.exec_at)
            assert seen.ready_at == before.ready_at

    def test_a_grant_to_nothing_is_not_found(self, bench: ReplicasBench) -> None:
        with pytest.raises(NotFound, match="prepare it"):
            bench.replicas.resume(bench.spec().name, grant())

    def test_the_same_grant_again_changes_nothing(self, bench: ReplicasBench) -> None:
        name = run(bench, token=7)
        before = bench.replicas.look(name)
        bench.replicas.resume(name, grant(7))
        after = bench.replicas.look(name)
        assert (after.state, after.token, after.starts) == (ReplicaState.READY, 7, 1)
        assert after.started_at == before.started_at

    def test_a_replica_keeps_its_token(self, bench: ReplicasBench) -> None:
        name = run(bench, token=7)
        for token in (6, 8):
            with pytest.raises(Conflict, match="token 7"):
                bench.replicas.resume(name, grant(token))
        assert bench.replicas.look(name).token == 7

    @pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "UPPER", "a..b"])
    def test_a_name_that_is_no_dns_label_is_refused(self, bench: ReplicasBench, name: str) -> None:
        for call in (bench.replicas.look, bench.replicas.log_location, bench.replicas.remove):
            with pytest.raises(DriverCannot):
                call(name)

    def test_replicas_live_side_by_side_and_listen_on_ports_of_their_own(self, bench: ReplicasBench) -> None:
        first, second = run(bench, number=1, token=1), run(bench, number=2, token=2)
        ports = [bench.replicas.look(name).endpoints["http"].port for name in (first, second)]
        assert ports[0] != ports[1]
        bench.replicas.stop(first, grace=LONG, why="scaled down")
        bench.until(first, ReplicaState.EXITED)
        assert bench.replicas.look(second).state is ReplicaState.READY
        assert sorted(bench.replicas.names()) == sorted([first, second])

    # --- starting again ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 3])
    def test_a_server_that_ends_is_started_again_and_counted(self, bench: ReplicasBench, code: int) -> None:
        name = run(bench, token=7)
        before = bench.replicas.look(name)
        bench.crash(name, code)
        seen = bench.until(name, ReplicaState.READY, starts=2)
        assert (seen.starts, seen.token, seen.exit) == (2, 7, None)
        assert (seen.exec_at, seen.endpoints) == (before.exec_at, before.endpoints)
        assert seen.last_exit is not None
        assert (seen.last_exit.cause, seen.last_exit.code) == (ExitCause.EXITED, code)
        assert seen.last_exit.exec_at == before.started_at
        assert seen.started_at is not None
        assert seen.last_exit.exit_at <= seen.started_at

    def test_a_server_that_ends_again_and_again_waits_longer_each_time(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.crash_always(name)
        first = bench.until(name, ReplicaState.BACKING_OFF, starts=2)
        bench.pass_time(bench.spec().backoff)
        second = bench.until(name, ReplicaState.BACKING_OFF, starts=3)
        bench.pass_time(bench.spec().backoff * 2)
        third = bench.until(name, ReplicaState.BACKING_OFF, starts=4)
        assert [seen.starts for seen in (first, second, third)] == [2, 3, 4]
        ends = [seen.last_exit.exit_at for seen in (first, second, third) if seen.last_exit is not None]
        assert ends[1] - ends[0] >= bench.spec().backoff
        assert ends[2] - ends[1] >= bench.spec().backoff * 2
        assert first.endpoints == {}
        assert first.detail
        assert not first.is_gone

    def test_what_vanishes_is_lost_and_has_no_record(self, bench: ReplicasBench) -> None:
        name = run(bench, token=7)
        bench.lose(name)
        bench.until(name, ReplicaState.LOST)
        bench.replicas.end_orphans()
        seen = bench.replicas.look(name)
        assert (seen.state, seen.exit, seen.token, seen.is_gone) == (ReplicaState.LOST, None, 7, True)
        assert seen.detail
        assert bench.replicas.names() == [name]

    # --- stop -------------------------------------------------------------------------------------------------------

    def test_a_stopped_replica_ends_for_good_and_the_record_says_why(self, bench: ReplicasBench) -> None:
        name = run(bench, token=7)
        bench.replicas.stop(name, grace=LONG, why="scaled down")
        seen = bench.until(name, ReplicaState.EXITED)
        assert seen.exit is not None
        assert (seen.exit.cause, seen.exit.detail) == (ExitCause.STOPPED, "scaled down")
        assert (seen.starts, seen.token, seen.endpoints, seen.is_gone) == (1, 7, {}, True)
        assert seen.exit.exec_at == seen.exec_at

    def test_one_that_ignores_the_stop_is_stopping_until_its_grace_is_over(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.ignore_term(name)
        bench.replicas.stop(name, grace=ENDING, why="scaled down")
        stopping = bench.replicas.look(name)
        assert (stopping.state, stopping.is_gone) == (ReplicaState.STOPPING, False)
        assert list(stopping.endpoints) == ["http"]
        bench.pass_time(ENDING)
        seen = bench.until(name, ReplicaState.EXITED)
        assert seen.exit is not None
        assert (seen.exit.cause, seen.exit.code, seen.exit.signal) == (ExitCause.STOPPED, None, 9)

    def test_a_second_stop_shortens_the_grace_and_the_first_reason_stays(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.ignore_term(name)
        bench.replicas.stop(name, grace=LONG, why="first")
        bench.replicas.stop(name, grace=timedelta(0), why="second")
        seen = bench.until(name, ReplicaState.EXITED)
        assert seen.exit is not None
        assert seen.exit.detail == "first"

    def test_a_stop_ends_one_that_is_still_starting(self, bench: ReplicasBench) -> None:
        spec = bench.spec()
        bench.hold(spec.name)
        bench.replicas.prepare(spec)
        bench.replicas.resume(spec.name, grant())
        bench.until(spec.name, ReplicaState.STARTING)
        bench.replicas.stop(spec.name, grace=LONG, why="superseded")
        seen = bench.until(spec.name, ReplicaState.EXITED)
        assert (seen.starts, seen.ready_at) == (1, None)

    def test_a_stop_ends_one_that_waits_for_its_next_start_at_once(self, bench: ReplicasBench) -> None:
        name = loop(bench)
        bench.replicas.stop(name, grace=LONG, why="gave up")
        seen = bench.until(name, ReplicaState.EXITED)
        assert seen.exit is not None
        assert (seen.exit.cause, seen.exit.detail, seen.exit.code) == (ExitCause.STOPPED, "gave up", None)
        assert seen.last_exit is not None
        assert seen.last_exit.code == 1

    def test_a_stop_removes_what_was_only_prepared(self, bench: ReplicasBench) -> None:
        spec = bench.spec()
        bench.replicas.prepare(spec)
        bench.replicas.stop(spec.name, grace=LONG, why="not needed")
        assert bench.replicas.look(spec.name).state is ReplicaState.ABSENT
        assert bench.replicas.names() == []

    def test_what_has_ended_stays_so_after_stops_prepares_and_grants(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.replicas.stop(name, grace=LONG, why="scaled down")
        before = bench.until(name, ReplicaState.EXITED)
        bench.replicas.stop(name, grace=timedelta(0), why="late")
        bench.replicas.prepare(bench.spec())
        with pytest.raises(Conflict):
            bench.replicas.resume(name, grant(2))
        after = bench.replicas.look(name)
        assert (after.state, after.exit) == (ReplicaState.EXITED, before.exit)

    @pytest.mark.parametrize("call", [lambda r, name: r.stop(name, grace=LONG, why=""), lambda r, name: r.remove(name)])
    def test_what_is_absent_may_be_stopped_and_removed(
        self, bench: ReplicasBench, call: Callable[[Replicas, str], None]
    ) -> None:
        call(bench.replicas, NOBODY)

    # --- remove -----------------------------------------------------------------------------------------------------

    def test_a_removed_replica_is_absent_and_its_log_stays(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.say(name, "hello")
        bench.replicas.stop(name, grace=LONG, why="scaled down")
        bench.until(name, ReplicaState.EXITED)
        bench.replicas.remove(name)
        bench.replicas.remove(name)
        assert bench.replicas.look(name).state is ReplicaState.ABSENT
        assert bench.replicas.names() == []
        assert bench.replicas.log(name).text == "hello\n"

    def test_the_log_of_a_removed_replica_is_forgotten_when_its_time_is_over(self, bench: ReplicasBench) -> None:
        gone, here = run(bench, number=1), run(bench, number=2)
        for name in (gone, here):
            bench.say(name, "hello")
            bench.replicas.stop(name, grace=LONG, why="scaled down")
            bench.until(name, ReplicaState.EXITED)
        bench.replicas.remove(gone)
        removed = bench.replicas.look(gone).observed_at
        assert bench.replicas.forget(removed - 2 * LONG).items == 0
        assert bench.replicas.log(gone).text == "hello\n"
        freed = bench.replicas.forget(removed + 2 * LONG)
        assert (freed.items, freed.size_bytes) == (1, len("hello\n"))
        assert bench.replicas.log(gone).text == ""
        assert bench.replicas.log(here).text == "hello\n", "it was not removed"
        assert bench.replicas.forget(removed + 2 * LONG).items == 0

    def test_a_lost_or_suspended_replica_can_be_removed(self, bench: ReplicasBench) -> None:
        lost, suspended = run(bench, number=1), bench.spec(number=2)
        bench.replicas.prepare(suspended)
        bench.lose(lost)
        bench.until(lost, ReplicaState.LOST)
        bench.replicas.remove(lost)
        bench.replicas.remove(suspended.name)
        assert bench.replicas.names() == []

    def test_one_that_runs_or_waits_for_its_next_start_cannot_be_removed(self, bench: ReplicasBench) -> None:
        name = run(bench)
        with pytest.raises(Conflict, match="still running"):
            bench.replicas.remove(name)
        bench.crash_always(name)
        bench.until(name, ReplicaState.BACKING_OFF, starts=2)
        with pytest.raises(Conflict, match="still running"):
            bench.replicas.remove(name)
        assert bench.replicas.names() == [name]

    # --- what it says -----------------------------------------------------------------------------------------------

    def test_the_output_is_read_in_pieces_while_it_runs(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.say(name, "one")
        first = bench.replicas.log(name)
        bench.say(name, "模型")
        second = bench.replicas.log(name, offset=first.next_offset)
        assert (first.text, second.text, second.at_end) == ("one\n", "模型\n", True)
        short = bench.replicas.log(name, limit=3)
        assert (short.text, short.next_offset, short.at_end) == ("one", 3, False)
        cut = bench.replicas.log(name, offset=first.next_offset, limit=4)
        assert (cut.text, cut.next_offset) == ("模", first.next_offset + 3)

    def test_the_output_of_all_its_processes_is_one_log(self, bench: ReplicasBench) -> None:
        name = run(bench)
        bench.say(name, "first process")
        bench.crash(name, 1)
        bench.until(name, ReplicaState.READY, starts=2)
        bench.say(name, "second process")
        text = bench.replicas.log(name).text
        assert text.startswith("first process\n")
        assert text.endswith("second process\n")

    def test_what_never_was_said_nothing(self, bench: ReplicasBench) -> None:
        chunk = bench.replicas.log(NOBODY)
        assert (chunk.text, chunk.at_end) == ("", True)

    # --- orphans ----------------------------------------------------------------------------------------------------

    def test_replicas_that_are_known_are_no_orphans(self, bench: ReplicasBench) -> None:
        run(bench)
        bench.replicas.prepare(bench.spec(number=2))
        assert bench.replicas.orphans() == []
        assert bench.replicas.end_orphans() == 0
        assert len(bench.replicas.names()) == 2
