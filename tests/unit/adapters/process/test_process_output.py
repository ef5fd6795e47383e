"""What a runner keeps of a training's output, and how it is read back: head and tail, whole lines, whole characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fermion.adapters.process import logs
from fermion.adapters.process.runner import MAX_PROGRESS_LINE, LogFile, ProgressFile

LIMIT = 1000


def everything(path: Path, *, kept: int = LIMIT, limit: int = 64, offset: int = 0) -> str:
    """The log as somebody reads it who follows it in small pieces."""
    pieces = []
    for _ in range(10_000):
        chunk = logs.read_log(path, kept=kept, offset=offset, limit=limit)
        pieces.append(chunk.text)
        if chunk.at_end and chunk.next_offset == offset:
            return "".join(pieces)
        offset = chunk.next_offset
    raise AssertionError("reading never came to an end")


def stream(size: int) -> bytes:
    """Numbered lines, so that every place in the stream looks different."""
    return b"".join(b"%09d\n" % number for number in range(size // 10))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("size", "dropped"),
    [
        pytest.param(0, 0, id="nothing"),
        pytest.param(500, 0, id="exactly the head"),
        pytest.param(510, 0, id="a line more than the head"),
        pytest.param(1000, 0, id="exactly the limit"),
        pytest.param(1010, 250, id="a line more than the limit"),
        pytest.param(100_000, 98_990, id="a flood"),
    ],
)
def test_a_log_keeps_its_head_and_its_tail(tmp_path: Path, size: int, dropped: int, finished: bool) -> None:
    path = tmp_path / "train.log"
    log = LogFile(str(path), LIMIT)
    data = stream(size)
    for start in range(0, size, 30):
        log.write(data[start : start + 30])
    if finished:
        log.finish()

    text = everything(path)
    kept = len(data) - dropped if dropped != 98_990 else None
    if not dropped:
        assert text == data.decode()
        return
    head, _, rest = text.partition("\n[fermion: ")
    said, _, tail = rest.partition(" bytes dropped")
    tail = tail.partition("]\n")[2]
    assert head == data[:500].decode()
    assert data.decode().endswith(tail)
    assert len(head) + int(said) + len(tail) == size
    assert LIMIT // 4 < len(tail) <= LIMIT // 2
    assert kept is None or len(head) + len(tail) == kept
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= LIMIT + 150
    if finished:
        assert [file.name for file in tmp_path.iterdir()] == ["train.log"]
        assert path.read_text() == text


def test_an_offset_means_the_same_while_it_grows_and_after_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    log = LogFile(str(path), LIMIT)
    log.write(stream(5000))
    growing = logs.read_log(path, kept=LIMIT, offset=4800, limit=100)
    log.finish()

    assert growing.text == stream(5000)[4800:4900].decode()
    assert logs.read_log(path, kept=LIMIT, offset=4800, limit=100) == growing


def test_an_offset_in_the_dropped_middle_goes_on_where_the_tail_begins(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    log = LogFile(str(path), LIMIT)
    log.write(stream(5000))
    log.finish()

    chunk = logs.read_log(path, kept=LIMIT, offset=2000, limit=100)
    assert "bytes dropped here" in chunk.text
    following = logs.read_log(path, kept=LIMIT, offset=chunk.next_offset, limit=10)
    assert following.text == stream(5000)[chunk.next_offset :][:10].decode()


def test_a_runner_killed_before_it_joined_the_pieces_leaves_them_readable(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    log = LogFile(str(path), LIMIT)
    log.write(stream(5000))
    with path.open("ab") as half:  # it died while joining
        half.write(b"half a tail")

    text = everything(path)
    assert "half a tail" not in text
    assert text.endswith(stream(5000)[-300:].decode())


def test_a_new_log_forgets_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    LogFile(str(path), LIMIT).write(stream(5000))
    log = LogFile(str(path), LIMIT)
    log.write(b"new\n")

    assert everything(path) == "new\n"


@pytest.mark.parametrize("size", [0, 300, 500, 510, 800, 5000])
def test_a_log_whose_writer_was_killed_is_continued(tmp_path: Path, size: int) -> None:
    path = tmp_path / "serve.log"
    data = stream(size + 200)
    LogFile(str(path), LIMIT).write(data[:size])
    log = LogFile(str(path), LIMIT, continued=True)
    assert log.total == size
    log.write(data[size:])
    growing = everything(path)
    log.finish()

    assert everything(path) == growing
    assert growing.endswith(data[-200:].decode())
    assert growing.startswith(data[:500].decode())


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_characters_are_never_split_however_small_the_pieces(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "train.log"
    text = "aé漢🙂\n" * 5
    log = LogFile(str(path), LIMIT)
    log.write(text.encode())
    log.finish()

    read = everything(path, limit=limit)
    assert read == text if limit >= 4 else "\ufffd" in read  # a piece smaller than a character cannot hold it


def test_a_character_still_being_written_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    log = LogFile(str(path), LIMIT)
    log.write("ab漢".encode()[:-1])
    first = logs.read_log(path, kept=LIMIT, offset=0, limit=64)
    log.write("漢".encode()[-1:])
    second = logs.read_log(path, kept=LIMIT, offset=first.next_offset, limit=64)

    assert (first.text, second.text) == ("ab", "漢")


def test_an_absent_log_is_empty_and_at_its_end(tmp_path: Path) -> None:
    chunk = logs.read_log(tmp_path / "train.log", kept=LIMIT, offset=7, limit=64)

    assert (chunk.text, chunk.next_offset, chunk.at_end) == ("", 7, True)


# --- progress ---------------------------------------------------------------------------------------------------------


class Stopwatch:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        pytest.param('{"a": 1}\n', ['{"a": 1}'], id="a line"),
        pytest.param('log\n{"a": 1}\nlog\n{"a": 2}\n', ['{"a": 1}', '{"a": 2}'], id="among log lines"),
        pytest.param('log {"a": 1}\n {"a": 2}\n', [], id="only at the start of a line"),
        pytest.param('\n\n{"a": 1}\n\n', ['{"a": 1}'], id="among empty lines"),
        pytest.param('{broken\n{"a": 1}', ["{broken", '{"a": 1}'], id="broken, and a last line without its end"),
        pytest.param("{" + "x" * MAX_PROGRESS_LINE + '\n{"a": 1}\n', ['{"a": 1}'], id="longer than a line may be"),
        pytest.param("{" + "x" * (MAX_PROGRESS_LINE - 1) + "\n", ["{" + "x" * (MAX_PROGRESS_LINE - 1)], id="just fits"),
    ],
)
def test_progress_lines_are_found_wherever_a_read_cuts_them(
    tmp_path: Path, printed: str, expected: list[str], piece: int
) -> None:
    progress = ProgressFile(str(tmp_path / "p"), 1 << 20, Stopwatch())
    data = printed.encode()
    for start in range(0, len(data), piece):
        progress.feed(data[start : start + piece])
    progress.finish()

    assert kept_lines(tmp_path / "p") == expected


def test_a_flood_is_thinned_and_its_newest_line_arrives_with_time(tmp_path: Path) -> None:
    clock = Stopwatch()
    progress = ProgressFile(str(tmp_path / "p"), 1 << 20, clock)
    for number in range(2000):
        progress.feed(b'{"n": %d}\n' % number)

    assert len(kept_lines(tmp_path / "p")) == 500  # the burst
    clock.now = 1.0
    progress.flush()
    assert json.loads(kept_lines(tmp_path / "p")[-1]) == {"n": 1999}
    progress.flush()
    assert len(kept_lines(tmp_path / "p")) == 501


def test_progress_slows_down_as_its_file_fills_and_never_passes_its_limit(tmp_path: Path) -> None:
    clock = Stopwatch()
    limit = 100_000
    progress = ProgressFile(str(tmp_path / "p"), limit, clock)
    line = b'{"filler": "%s"}\n' % (b"x" * 100)
    counts = []
    for _ in range(6):
        for _ in range(3600):
            clock.now += 1.0
            progress.feed(line)
        counts.append(len(kept_lines(tmp_path / "p")))
    progress.feed(b'{"last": true}\n')
    progress.finish()

    added = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    assert added[0] > 60 >= added[-1]
    assert (tmp_path / "p").stat().st_size < limit
    assert kept_lines(tmp_path / "p")[-1] == '{"last": true}'


def test_progress_is_read_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    chunk = logs.read_progress(path, offset=0, limit=10)

    assert (chunk.text, chunk.next_offset, chunk.at_end) == ('{"a": 1}\n{"a": 2}\n', 18, True)
    with path.open("a") as file:
        file.write("3}\n")
    assert logs.read_progress(path, offset=chunk.next_offset, limit=10).text == '{"a": 3}\n'


def test_long_progress_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "p"
    lines = [json.dumps({"n": number, "filler": "x" * 5000}) for number in range(20)]
    path.write_text("\n".join(lines) + "\n")
    read, offset = "", 0
    for _ in range(20):
        chunk = logs.read_progress(path, offset=offset, limit=1)
        read, offset = read + chunk.text, chunk.next_offset
        if chunk.at_end:
            break

    assert read == path.read_text()


def test_a_log_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    assert logs.read_log(path, kept=LIMIT, offset=0, limit=100).is_missing
    path.touch()
    assert not logs.read_log(path, kept=LIMIT, offset=0, limit=100).is_missing
