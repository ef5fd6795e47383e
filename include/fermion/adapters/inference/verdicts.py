"""One wording for what can go wrong with a question to a model server, whichever way it was asked."""

from __future__ import annotations

from fermion.domain.problems import Problem
from fermion.domain.serving.tensors import Target
from fermion.errors import NotFound, OutsideBroken, OutsideUnavailable, RequestRefused

_MOST_WORDS = 600


def unreachable(target: Target, why: str) -> OutsideUnavailable:
    """Nobody answered: refused, reset, no such host."""
    return OutsideUnavailable(f"nobody answers at {target.address}: {_cut(why)}", what=target.address)


def late(target: Target, timeout_s: float) -> OutsideUnavailable:
    """It did not answer in time."""
    return OutsideUnavailable(f"{target.address} did not answer within {timeout_s:g} s", what=target.address)


def busy(target: Target, code: object, words: str) -> OutsideUnavailable:
    """It, or the router before it, cannot answer now."""
    return OutsideUnavailable(f"{target.address} cannot answer now ({code}): {_cut(words)}", what=target.address)


def failed(target: Target, code: object, words: str) -> OutsideBroken:
    """The server failed over the request."""
    return OutsideBroken(f"the server of model {target.model!r} failed ({code}): {_cut(words)}", what=target.address)


def unusable(target: Target, why: str) -> OutsideBroken:
    """It answered what is no answer of the protocol."""
    return OutsideBroken(f"{target.address} gave an answer that cannot be used: {_cut(why)}", what=target.address)


def unknown(target: Target, words: str) -> NotFound:
    """There is no such model, or no such path."""
    return NotFound(f"{target.address} knows no model {target.model!r}: {_cut(words)}", what=target.model)


def refused(target: Target, code: object, words: str) -> RequestRefused:
    """The server does not take the inputs; its own words say why."""
    problem = Problem(
        field="inputs",
        code="refused_by_model",
        message=f"the server answered {code}: {_cut(words)}",
        fix="Its metadata says what it takes.",
    )
    return RequestRefused([problem], what=f"prediction request to model {target.model!r}")


def too_large(target: Target, max_bytes: int) -> RequestRefused:
    """The request is larger than is sent."""
    problem = Problem(
        field="inputs",
        code="too_large",
        message=f"the request is larger than {max_bytes} bytes.",
        fix="Ask in several requests.",
    )
    return RequestRefused([problem], what=f"prediction request to model {target.model!r}")


def _cut(words: str) -> str:
    text = " ".join(words.split()) or "no reason given"
    return text if len(text) <= _MOST_WORDS else f"{text[:_MOST_WORDS]} …"
