"""What every driver's ``Workloads`` must do, whatever runs behind it.

To hold a driver to it, subclass ``WorkloadsContract`` in a ``test_*.py`` and give it a ``bench`` fixture: a
``WorkloadsBench`` on which nothing runs yet. The bench moves the world (a test cannot know how a process is made to
exit); all that is asserted goes through the port.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import pytest

from fermion.domain.leases import Slice
from fermion.domain.workloads import ExitCause, Grant, Seen, WorkloadSpec, WorkloadState
from fermion.errors import Conflict, DriverCannot, NotFound
from fermion.ports import Workloads

LONG = timedelta(minutes=10)


class WorkloadsBench(Protocol):
    """A driver's workloads with the levers to move them. Every lever is bounded in time."""

    workloads: Workloads

    def spec(self, *, attempt: int = 1) -> WorkloadSpec:
        """A training that waits for the levers below."""
        ...

    def exit(self, name: str, code: int) -> None:
        """Let its process end by itself with that code."""
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

    def pass_grace(self, grace: timedelta) -> None:
        """Let that much time pass, or at least until what is due after it has begun."""
        ...

    def until(self, name: str, state: WorkloadState) -> Seen:
        """Look until it is in that state; fails the test when that takes too long."""
        ...


def grant(token: int = 1) -> Grant:
    """One declared slot."""
    return Grant(token=token, slices=(Slice("n0", ("slot-0",)),), devices_are_declared=True)


def run(bench: WorkloadsBench, *, attempt: int = 1, token: int = 1) -> str:
    """Prepare and resume; the name of a workload that runs."""
    spec = bench.spec(attempt=attempt)
    bench.workloads.prepare(spec)
    bench.workloads.resume(spec.name, grant(token))
    bench.until(spec.name, WorkloadState.RUNNING)
    return spec.name


class WorkloadsContract:
    """The tests. Each begins with a bench on which nothing runs."""

    # --- from absent to running -------------------------------------------------------------------------------------

    def test_what_was_never_prepared_is_absent(self, bench: WorkloadsBench) -> None:
        seen = bench.workloads.look("job-20250101-404-a1")
        assert (seen.state, seen.token, seen.exec_at, seen.exit) == (WorkloadState.ABSENT, None, None, None)
        assert bench.workloads.names() == []

    def test_what_is_prepared_waits_and_holds_no_token(self, bench: WorkloadsBench) -> None:
        spec = bench.spec()
        bench.workloads.prepare(spec)
        seen = bench.workloads.look(spec.name)
        assert (seen.name, seen.state, seen.token, seen.exec_at) == (spec.name, WorkloadState.SUSPENDED, None, None)
        assert bench.workloads.names() == [spec.name]

    def test_preparing_again_finds_the_first(self, bench: WorkloadsBench) -> None:
        name = run(bench, token=3)
        bench.workloads.prepare(bench.spec())
        seen = bench.workloads.look(name)
        assert (seen.state, seen.token) == (WorkloadState.RUNNING, 3)
        assert bench.workloads.names() == [name]

    def test_a_grant_lets_it_run_under_its_token(self, bench: WorkloadsBench) -> None:
        seen = bench.workloads.look(run(bench, token=7))
        assert (seen.state, seen.token, seen.exit) == (WorkloadState.RUNNING, 7, None)
        assert seen.exec_at is not None
        assert seen.exec_at.tzinfo is not None
        assert seen.exec_at <= seen.observed_at

    def test_a_grant_to_nothing_is_not_found(self, bench: WorkloadsBench) -> None:
        with pytest.raises(NotFound, match="prepare it"):
            bench.workloads.resume(bench.spec().name, grant())

    def test_the_same_grant_again_changes_nothing(self, bench: WorkloadsBench) -> None:
        name = run(bench, token=7)
        before = bench.workloads.look(name)
        bench.workloads.resume(name, grant(7))
        after = bench.workloads.look(name)
        assert (after.state, after.token, after.exec_at) == (WorkloadState.RUNNING, 7, before.exec_at)

    @pytest.mark.parametrize("token", [6, 8], ids=["an older token", "a newer token"])
    def test_a_running_workload_keeps_its_token(self, bench: WorkloadsBench, token: int) -> None:
        name = run(bench, token=7)
        with pytest.raises(Conflict, match="token 7"):
            bench.workloads.resume(name, grant(token))
        assert bench.workloads.look(name).token == 7

    @pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "UPPER", "a..b"])
    def test_a_name_that_is_no_dns_label_is_refused(self, bench: WorkloadsBench, name: str) -> None:
        with pytest.raises(DriverCannot):
            bench.workloads.look(name)

    # --- ends -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 3, 255])
    def test_an_exit_leaves_a_record_with_its_code_and_times(self, bench: WorkloadsBench, code: int) -> None:
        name = run(bench, token=7)
        bench.exit(name, code)
        seen = bench.until(name, WorkloadState.EXITED)
        assert seen.exit is not None
        assert (seen.exit.cause, seen.exit.code, seen.exit.signal) == (ExitCause.EXITED, code, None)
        assert seen.token == 7
        assert seen.exit.exec_at == seen.exec_at
        assert seen.exec_at is not None
        assert seen.exec_at <= seen.exit.exit_at <= seen.observed_at

    def test_what_has_ended_cannot_run_again(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.exit(name, 0)
        bench.until(name, WorkloadState.EXITED)
        bench.workloads.prepare(bench.spec())
        with pytest.raises(Conflict):
            bench.workloads.resume(name, grant(2))
        assert bench.workloads.look(name).state is WorkloadState.EXITED

    def test_what_vanishes_is_lost_and_has_no_record(self, bench: WorkloadsBench) -> None:
        name = run(bench, token=7)
        bench.lose(name)
        seen = bench.until(name, WorkloadState.LOST)
        assert (seen.exit, seen.token) == (None, 7)
        assert seen.detail
        assert bench.workloads.names() == [name]

    def test_attempts_live_side_by_side(self, bench: WorkloadsBench) -> None:
        first, second = run(bench, attempt=1, token=1), run(bench, attempt=2, token=2)
        bench.exit(first, 1)
        bench.until(first, WorkloadState.EXITED)
        assert bench.workloads.look(second).state is WorkloadState.RUNNING
        assert sorted(bench.workloads.names()) == sorted([first, second])

    # --- stop -------------------------------------------------------------------------------------------------------

    def test_a_stopped_workload_ends_and_the_record_says_why(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.workloads.stop(name, grace=LONG, why="ann asked")
        seen = bench.until(name, WorkloadState.EXITED)
        assert seen.exit is not None
        assert (seen.exit.cause, seen.exit.detail) == (ExitCause.STOPPED, "ann asked")

    def test_one_that_ignores_the_stop_is_killed_when_its_grace_is_over(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.ignore_term(name)
        grace = timedelta(seconds=1)
        bench.workloads.stop(name, grace=grace, why="max_runtime")
        assert bench.workloads.look(name).state is WorkloadState.RUNNING
        bench.pass_grace(grace)
        seen = bench.until(name, WorkloadState.EXITED)
        assert seen.exit is not None
        assert (seen.exit.cause, seen.exit.code, seen.exit.signal) == (ExitCause.STOPPED, None, 9)

    def test_a_second_stop_shortens_the_grace_and_the_first_reason_stays(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.ignore_term(name)
        bench.workloads.stop(name, grace=LONG, why="first")
        bench.workloads.stop(name, grace=timedelta(0), why="second")
        seen = bench.until(name, WorkloadState.EXITED)
        assert seen.exit is not None
        assert seen.exit.detail == "first"

    def test_a_stop_removes_what_was_only_prepared(self, bench: WorkloadsBench) -> None:
        spec = bench.spec()
        bench.workloads.prepare(spec)
        bench.workloads.stop(spec.name, grace=LONG, why="not needed")
        assert bench.workloads.look(spec.name).state is WorkloadState.ABSENT
        assert bench.workloads.names() == []

    def test_a_stop_after_the_end_changes_nothing(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.exit(name, 0)
        before = bench.until(name, WorkloadState.EXITED)
        bench.workloads.stop(name, grace=timedelta(0), why="late")
        assert bench.workloads.look(name).exit == before.exit

    @pytest.mark.parametrize("call", [lambda w, name: w.stop(name, grace=LONG, why=""), lambda w, name: w.remove(name)])
    def test_what_is_absent_may_be_stopped_and_removed(
        self, bench: WorkloadsBench, call: Callable[[Workloads, str], None]
    ) -> None:
        call(bench.workloads, "job-20250101-404-a1")

    # --- remove -----------------------------------------------------------------------------------------------------

    def test_a_removed_workload_is_absent(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.exit(name, 0)
        bench.until(name, WorkloadState.EXITED)
        bench.workloads.remove(name)
        assert bench.workloads.look(name).state is WorkloadState.ABSENT
        assert bench.workloads.names() == []

    def test_a_lost_or_suspended_workload_can_be_removed(self, bench: WorkloadsBench) -> None:
        lost, suspended = run(bench, attempt=1), bench.spec(attempt=2)
        bench.workloads.prepare(suspended)
        bench.lose(lost)
        bench.until(lost, WorkloadState.LOST)
        bench.workloads.remove(lost)
        bench.workloads.remove(suspended.name)
        assert bench.workloads.names() == []

    def test_a_running_workload_cannot_be_removed(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        with pytest.raises(Conflict, match="still running"):
            bench.workloads.remove(name)
        assert bench.workloads.look(name).state is WorkloadState.RUNNING

    # --- what it says -----------------------------------------------------------------------------------------------

    def test_the_output_is_read_in_pieces_while_it_runs(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.say(name, "one")
        first = bench.workloads.log(name)
        bench.say(name, "two")
        second = bench.workloads.log(name, offset=first.next_offset)
        assert (first.text, second.text) == ("one\n", "two\n")
        assert second.at_end
        short = bench.workloads.log(name, limit=3)
        assert (short.text, short.next_offset, short.at_end) == ("one", 3, False)

    def test_a_character_of_several_bytes_is_never_cut(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.say(name, "模型")
        pieces, offset = [], 0
        while not (chunk := bench.workloads.log(name, offset=offset, limit=4)).at_end:
            assert chunk.next_offset > offset
            pieces.append(chunk.text)
            offset = chunk.next_offset
        assert "".join([*pieces, chunk.text]) == "模型\n"

    def test_progress_is_whole_lines_of_json_only(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        for text in ("hello", '{"progress": 10}', '{"progress": 20}'):
            bench.say(name, text)
        pieces, offset = [], 0
        while not (chunk := bench.workloads.progress(name, offset=offset, limit=20)).at_end:
            assert chunk.next_offset > offset
            pieces.append(chunk.text)
            offset = chunk.next_offset
        pieces.append(chunk.text)
        assert all(piece.endswith("\n") for piece in pieces)
        assert "".join(pieces) == '{"progress": 10}\n{"progress": 20}\n'
        bench.say(name, '{"progress": 30}')
        assert bench.workloads.progress(name, offset=chunk.next_offset).text == '{"progress": 30}\n'

    def test_what_was_said_is_readable_after_the_removal(self, bench: WorkloadsBench) -> None:
        name = run(bench)
        bench.say(name, '{"progress": 100}')
        bench.exit(name, 0)
        bench.until(name, WorkloadState.EXITED)
        bench.workloads.remove(name)
        assert bench.workloads.log(name).text == '{"progress": 100}\n'
        assert bench.workloads.progress(name).text == '{"progress": 100}\n'

    def test_what_never_was_said_nothing(self, bench: WorkloadsBench) -> None:
        for chunk in (bench.workloads.log("job-20250101-404-a1"), bench.workloads.progress("job-20250101-404-a1")):
            assert (chunk.text, chunk.at_end) == ("", True)

    # --- orphans ----------------------------------------------------------------------------------------------------

    def test_workloads_that_are_known_are_no_orphans(self, bench: WorkloadsBench) -> None:
        run(bench)
        bench.workloads.prepare(bench.spec(attempt=2))
        assert bench.workloads.orphans() == []
        assert bench.workloads.end_orphans() == 0
        assert len(bench.workloads.names()) == 2
