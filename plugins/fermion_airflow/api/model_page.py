"""A model version as a small page for a browser. Every word in it is escaped: names and metrics come from training code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from shlex import join

from fermion.domain.artifacts import ModelVersion
from fermion.domain.counting import counted

Row = tuple[str, str]

_PAGES = {"reports": "report", "logs": "log"}
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
th, td { padding: .15rem 1.5rem .15rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; }
"""


def page_of(version: ModelVersion, *, prefix: str) -> str:
    """The page. ``prefix`` is where the pages lie, to which the links to the job's report and log are added."""
    facts = [
        ("published", f"{version.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("checksum", version.checksum),
        ("size", counted(version.size_bytes, "byte")),
        ("where", version.uri),
    ]
    parts = [
        f"<h1>{escape(version.path)}</h1>",
        _table(facts),
        *_links(version, prefix),
        *_section("Metrics", [(name, f"{value:g}") for name, value in version.metrics.items()]),
        *_section("Made from", list(_flat(_as_written(version.lineage)))),
        *_section(
            "Files", [(file.path, f"{counted(file.size, 'byte')}, sha256 {file.sha256}") for file in version.files]
        ),
        "<p>The same for programs: this address with <code>Accept: application/json</code>.</p>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(version.path)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{chr(10).join(parts)}\n</body></html>\n'


def _links(version: ModelVersion, prefix: str) -> Iterator[str]:
    job = version.lineage.get("job")
    if isinstance(job, str):
        pages = (f'<a href="{escape(f"{prefix}/{kind}/{job}")}">{name}</a>' for kind, name in _PAGES.items())
        yield f"<p>{escape(job)}: {', '.join(pages)}</p>"


def _section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield f"<h2>{title}</h2>"
        yield _table(rows)


def _table(rows: Sequence[Row]) -> str:
    made = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{made}</table>"


def _as_written(lineage: Mapping[str, object]) -> Mapping[str, object]:
    """The lineage with its entrypoint as the command line that it was."""
    words = lineage.get("entrypoint")
    return {**lineage, "entrypoint": join(map(str, words))} if isinstance(words, list | tuple) else lineage


def _flat(values: Mapping[str, object], under: str = "") -> Iterator[Row]:
    """Every value under its dotted name; what is empty is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{under}{key}", "; ".join(map(_shown, value))
        elif value is not None and value != "":
            yield f"{under}{key}", str(value)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
