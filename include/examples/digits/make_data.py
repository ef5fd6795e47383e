"""Writes ``data/digits.csv.gz`` from scikit-learn's ``load_digits``; the file is shipped, so this runs only to make it again.

Run it with a Python that has scikit-learn. The same scikit-learn data gives the same bytes.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from sklearn.datasets import load_digits

TARGET = Path(__file__).parent / "data" / "digits.csv.gz"


def main() -> None:
    digits = load_digits()
    header = ",".join([f"p{row}{column}" for row in range(8) for column in range(8)] + ["digit"])
    rows = (
        ",".join(str(int(pixel)) for pixel in pixels) + f",{label}"
        for pixels, label in zip(digits.data, digits.target, strict=True)
    )
    text = "\n".join([header, *rows]) + "\n"
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
