"""Where the database's files lie, and who may reach them. The server itself is met in the end-to-end tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fermion.adapters.local_platform.keys import keep_keys
from fermion.adapters.local_platform.postgres import (
    OWNER,
    Account,
    EmbeddedPostgres,
    forget_ownerless,
    major_version,
    shipped_programs,
)
from fermion.errors import Conflict

STRANGER = Account(name="stranger", uid=54321, gid=54321)


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    return folder


def test_an_account_may_enter_where_every_folder_above_lets_it_pass(open_folder: Path) -> None:
    assert STRANGER.can_enter(open_folder)


def test_one_closed_folder_on_the_way_keeps_an_account_out(open_folder: Path) -> None:
    (open_folder / "closed" / "inner").mkdir(parents=True)
    (open_folder / "closed").chmod(0o700)

    assert not STRANGER.can_enter(open_folder / "closed" / "inner")


def test_the_wheel_holds_the_programs_that_are_used() -> None:
    assert [name for name in ("postgres", "initdb") if not os.access(shipped_programs() / name, os.X_OK)] == []


def test_files_of_another_major_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("9\n")
    (tmp_path / "keys").mkdir()

    with pytest.raises(Conflict, match=rf"made by Postgres 9, the installed one is {major_version()}.*Upgrade"):
        EmbeddedPostgres(data=data, keys=keep_keys(tmp_path / "keys"), port=1).prepare()


def test_files_whose_link_is_gone_are_forgotten_and_the_others_stay(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for name in ("state-linked", "state-left", "state-unfinished"):
        (place / name / "postgres").mkdir(parents=True)
    (tmp_path / "run").symlink_to(place / "state-linked" / "postgres")
    (place / "state-linked" / OWNER).write_text(str(tmp_path / "run"))
    (place / "state-left" / OWNER).write_text(str(tmp_path / "deleted" / "run"))

    forget_ownerless(place)

    assert {path.name for path in place.iterdir()} == {"state-linked", "state-unfinished"}
