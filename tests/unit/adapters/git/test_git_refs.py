"""What may stand for a commit, and what a server's listing says."""

from __future__ import annotations

import pytest

from fermion.adapters.git.refs import Advertised, ambiguous, is_commit, is_short_commit, missing, problems_of


@pytest.mark.parametrize(
    "ref", ["main", "feature/x-1", "v1.0", "refs/heads/main", "HEAD", "a" * 40, "0123abc", "überschrift", "a@b"]
)
def test_a_plain_name_has_no_problem(ref: str) -> None:
    assert problems_of(ref) == []


@pytest.mark.parametrize(
    "ref",
    ["", "-x", "--upload-pack=x", "a b", "a..b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a//b", "/a", "a/", "a.",
     "a/.b", "a.lock", "@", "a@{1}", "a\nb", "a\x7f", "x" * 251],
)  # fmt: skip
def test_what_git_would_not_take_as_a_name_is_refused(ref: str) -> None:
    assert problems_of(ref) != []


def test_whole_and_short_commits_are_told_apart() -> None:
    assert is_commit("0" * 40)
    assert not is_commit("0" * 39)
    assert not is_commit("G" * 40)
    assert [is_short_commit("a" * n) for n in (6, 7, 39, 40)] == [False, True, True, False]


def test_a_listing_gives_the_commit_that_a_tag_points_to() -> None:
    listing = "1\tHEAD\n1\trefs/heads/main\n2\trefs/tags/v1\n3\trefs/tags/v1^{}\n4\trefs/tags/light\n"
    advertised = Advertised.from_listing(listing)

    assert advertised.commits_of("main") == {"refs/heads/main": "1"}
    assert advertised.commits_of("v1") == {"refs/tags/v1": "3"}
    assert advertised.commits_of("refs/tags/light") == {"refs/tags/light": "4"}
    assert advertised.commits_of("none") == {}
    assert advertised.names() == ["light", "main", "v1"]


def test_a_name_with_two_meanings_is_told_with_both() -> None:
    problem = ambiguous("x", {"refs/heads/x": "a" * 40, "refs/tags/x": "b" * 40})

    assert "refs/heads/x is aaaaaaaaaaaa, refs/tags/x is bbbbbbbbbbbb" in problem.message


def test_a_missing_name_is_told_with_names_that_are_near() -> None:
    assert "such as main" in missing("mian", ["dev", "main", "zzz"], "repo").message
    assert "It has 3 branches and tags, such as" in missing("mian", ["dev", "main", "zzz"], "repo").message
    assert "It has 1 branch or tag, such as main." in missing("nope", ["main"], "repo").message
    assert missing("x", [], "repo").message == "repo has no branch, tag or commit 'x'."
