"""Trains a small neural network to read handwritten digits, epoch by epoch.

It needs nothing of the platform, only folders by environment:

    FERMION_DATA_DIR         holds digits/digits.csv.gz
    FERMION_OUTPUT_DIR       model.joblib, metrics.json and signature.json are written here, at the end and all at once
    FERMION_CHECKPOINT_DIR   checkpoint.joblib is written here after every epoch, and resumed from (optional)
    FERMION_RESUME_FROM      where to resume from when there is no checkpoint of our own: another job's (optional)

What it makes is served by serve.py. The options ``--fault-…`` make a model that misbehaves there (see faults.py).

Progress is one JSON object a line on standard output. Exit code 2: something is missing or does not fit, the last line on
standard error says what.
"""

# ruff: noqa: T201  (what a training prints is its log and its progress)
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import joblib
import numpy
import sklearn
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

CLASSES = list(range(10))
WHITE = 16.0
"""The largest value of a pixel."""


class UnusableError(Exception):
    """The training cannot be done as asked; the message says what to change."""


@dataclass
class Training:
    """What a checkpoint holds: all that is needed to go on exactly where it stopped."""

    model: MLPClassifier
    shape: dict[str, Any]
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    train_x: numpy.ndarray
    test_x: numpy.ndarray
    train_y: numpy.ndarray
    test_y: numpy.ndarray


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options. Both ``--learning-rate`` and ``--learning_rate`` are understood."""
    parser = argparse.ArgumentParser(description="Train a network that reads digits.", allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", "--learning_rate", type=float, default=0.003)
    parser.add_argument("--hidden", type=int, default=64, help="neurons of the hidden layer")
    parser.add_argument("--batch-size", "--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds-per-epoch", "--seconds_per_epoch", type=float, default=0.0, help="make it last")
    faults.add_options(parser)
    options = parser.parse_args(words)
    for name in ("epochs", "learning_rate", "hidden", "batch_size"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be greater than 0")
    try:
        faults.asked_for(options)
    except ValueError as problem:
        parser.error(str(problem))
    return options


def folder(variable: str) -> Path:
    """The folder that a variable names."""
    found = optional_folder(variable)
    if found is None:
        raise UnusableError(f"{variable} is not set; it names a folder that this training needs.")
    return found


def optional_folder(variable: str) -> Path | None:
    """The folder that a variable names, or None."""
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def load(data_dir: Path, seed: int) -> Data:
    """The digits, a fifth of them kept apart for measuring."""
    file = data_dir / "digits" / "digits.csv.gz"
    if not file.is_file():
        raise UnusableError(f"there is no {file}; give the training the dataset 'digits'.")
    table = numpy.loadtxt(file, delimiter=",", skiprows=1)
    return Data(
        *train_test_split(
            table[:, :-1] / WHITE, table[:, -1].astype(int), test_size=0.2, random_state=seed, stratify=table[:, -1]
        )
    )


def start(options: argparse.Namespace, own: Path | None, other: Path | None) -> Training:
    """The training where the newest checkpoint left it, or a new one."""
    shape = {name: getattr(options, name) for name in ("hidden", "learning_rate", "batch_size", "seed")}
    for place in (own, other):
        file = place / "checkpoint.joblib" if place is not None else None
        if file is None or not file.is_file():
            continue
        found = Training(**joblib.load(file))
        if found.shape != shape:
            raise UnusableError(
                f"the checkpoint in {place} was made with {found.shape}, not {shape}; use those, or start afresh."
            )
        print(f"resuming after epoch {found.epoch} from {file}", flush=True)
        return found
    model = MLPClassifier(
        hidden_layer_sizes=(options.hidden,),
        learning_rate_init=options.learning_rate,
        batch_size=options.batch_size,
        random_state=options.seed,
    )
    return Training(model=model, shape=shape)


def run_epoch(training: Training, data: Data) -> None:
    """One pass over the training data, measured on the data kept apart."""
    training.model.partial_fit(data.train_x, data.train_y, classes=CLASSES)
    training.epoch += 1
    probabilities = training.model.predict_proba(data.test_x)
    training.history.append(
        {
            "loss": float(training.model.loss_),
            "validation_loss": float(log_loss(data.test_y, probabilities, labels=CLASSES)),
            "accuracy": float(accuracy_score(data.test_y, probabilities.argmax(axis=1))),
        }
    )


def report(training: Training, epochs: int) -> None:
    """One line of progress."""
    line = {
        "progress": round(100 * training.epoch / epochs, 2),
        "epoch": training.epoch,
        "epochs": epochs,
        "metrics": {name: round(value, 6) for name, value in training.history[-1].items()},
        "at": time.time(),
    }
    print(json.dumps(line), flush=True)


def save_checkpoint(training: Training, place: Path | None) -> None:
    """Replace the checkpoint; whoever looks finds the old one or the new one, never half of one."""
    if place is None:
        return
    part = place / "checkpoint.joblib.part"
    joblib.dump(vars(training), part)
    part.replace(place / "checkpoint.joblib")


def save_model(training: Training, options: argparse.Namespace, data: Data, place: Path) -> None:
    """Write the files beside their names first, then give all of them their names."""
    asked = faults.asked_for(options)
    signature = {
        "framework": "scikit-learn",
        "versions": {"scikit-learn": sklearn.__version__, "numpy": numpy.__version__, "joblib": joblib.__version__},
        "inputs": [{"name": "pixels", "dtype": "float64", "shape": [-1, 64], "range": [0, 1], "order": "row by row"}],
        "outputs": [
            {"name": "digit", "dtype": "int64", "shape": [-1], "classes": CLASSES},
            {"name": "confidence", "dtype": "float64", "shape": [-1], "range": [0, 1]},
        ],
        "options": {name: value for name, value in vars(options).items() if not name.startswith("fault_")},
    }
    metrics = {
        **training.history[-1],
        "epochs": training.epoch,
        "train_rows": len(data.train_y),
        "test_rows": len(data.test_y),
    }
    documents = {"metrics.json": metrics, "signature.json": signature}
    if asked.are_any:
        print(f"this model is made to misbehave when it is served: {json.dumps(asked.to_json())}", flush=True)
        documents[faults.FILE] = asked.to_json()
    place.mkdir(parents=True, exist_ok=True)
    joblib.dump(training.model, place / ".model.joblib.part")
    for name, document in documents.items():
        (place / f".{name}.part").write_text(json.dumps(document, indent=2) + "\n")
    for name in ("model.joblib", *documents):
        (place / f".{name}.part").replace(place / name)


def train(options: argparse.Namespace) -> None:
    """All of it."""
    output, checkpoints = folder("FERMION_OUTPUT_DIR"), optional_folder("FERMION_CHECKPOINT_DIR")
    data = load(folder("FERMION_DATA_DIR"), options.seed)
    print(f"{len(data.train_y)} digits to learn from, {len(data.test_y)} to measure with", flush=True)
    training = start(options, checkpoints, optional_folder("FERMION_RESUME_FROM"))
    while training.epoch < options.epochs:
        begun = time.monotonic()
        run_epoch(training, data)
        save_checkpoint(training, checkpoints)
        time.sleep(max(0.0, options.seconds_per_epoch - (time.monotonic() - begun)))
        report(training, options.epochs)
    save_model(training, options, data, output)
    print(f"accuracy {training.history[-1]['accuracy']:.4f} after {training.epoch} epochs", flush=True)


def main() -> int:
    try:
        # Matrices this small are faster without threads, and several trainings share the machine.
        with threadpool_limits(1):
            train(arguments())
    except UnusableError as problem:
        print(f"train.py: {problem}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
