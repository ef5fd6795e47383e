"""Generated passwords and keys."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path

from fermion.adapters.local_platform.keys import PASSWORDS_FILE, USERS, keep_keys


def test_every_later_call_gives_the_same_keys(tmp_path: Path) -> None:
    assert asdict(keep_keys(tmp_path)) == asdict(keep_keys(tmp_path))


def test_two_installations_share_no_key(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = asdict(keep_keys(tmp_path / "a")), asdict(keep_keys(tmp_path / "b"))

    assert not [name for name in first if first[name] == second[name]]


def test_no_file_can_be_read_by_others(tmp_path: Path) -> None:
    keep_keys(tmp_path)

    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_file_that_was_opened_to_others_is_closed_again(tmp_path: Path) -> None:
    keep_keys(tmp_path)
    for path in tmp_path.iterdir():
        path.chmod(0o644)

    keep_keys(tmp_path)

    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_password_that_a_person_set_stays_and_missing_ones_are_added(tmp_path: Path) -> None:
    (tmp_path / PASSWORDS_FILE).write_text(json.dumps({"admin": "chosen", "guest": "kept"}))

    keys = keep_keys(tmp_path)

    written = json.loads((tmp_path / PASSWORDS_FILE).read_text())
    assert written["admin"] == keys.passwords["admin"] == "chosen"
    assert written["guest"] == "kept"
    assert set(keys.passwords) == set(USERS)


def test_an_empty_file_left_by_a_full_disk_is_filled(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").touch()

    assert len(keep_keys(tmp_path).jwt) == 128


def test_the_fernet_key_is_32_bytes_in_urlsafe_base64(tmp_path: Path) -> None:
    assert len(base64.urlsafe_b64decode(keep_keys(tmp_path).fernet)) == 32


def test_the_keys_do_not_show_in_a_traceback(tmp_path: Path) -> None:
    keys = keep_keys(tmp_path)

    assert keys.postgres not in repr(keys)
