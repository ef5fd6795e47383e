"""A training that only sleeps and reports progress, and that misbehaves on request. Nothing but the standard library.

It writes what a real training writes: progress lines, a checkpoint after every epoch (resumed from), and at the end a model
(``model.json``). The switches take true or false, because hyperparameters arrive as ``--key value``; each acts after the
epoch that ``--after`` names.
"""

# ruff: noqa: T201  (what a training prints is its log and its progress)
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

LINE = "x" * 1023 + "\n"
MIB = 1024 * 1024


def truth(word: str) -> bool:
    """``true`` or ``false``."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options; ``--fail`` alone means ``--fail true``."""
    parser = argparse.ArgumentParser(description="Sleep, report progress, misbehave on request.", allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=10.0, help="of sleep in all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--after", type=int, default=1, help="the epoch after which it misbehaves; 0: at once")
    parser.add_argument("--output-mib", type=int, default=0, help="size of an additional file of the model")
    parser.add_argument("--eat-memory", type=int, default=0, metavar="MIB", help="take this much memory and keep it")
    parser.add_argument("--spam", type=int, default=0, metavar="MIB", help="print this much log")
    switches = {
        "--fail": "raise an error",
        "--hang": "stay alive without progress",
        "--bad-utf8": "print bytes that are no text",
        "--broken-json": "print half a progress line",
        "--claims-400-percent": "say that 400 % are done",
        "--ignore-term": "ignore SIGTERM from the start",
    }
    for name, meaning in switches.items():
        parser.add_argument(name, type=truth, nargs="?", const=True, default=False, metavar="true|false", help=meaning)
    options = parser.parse_args(words)
    if options.epochs < 1 or options.seconds < 0:
        parser.error("--epochs must be at least 1 and --seconds at least 0")
    return options


def write(file: Path, content: bytes) -> None:
    """Replace a file; whoever looks finds the old one or the new one."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def last_epoch() -> int:
    """The epoch of the newest checkpoint, 0 without one: our own first, then the one we were told to resume from."""
    for variable in ("FERMION_CHECKPOINT_DIR", "FERMION_RESUME_FROM"):
        file = Path(os.environ.get(variable, "/nonexistent")) / "checkpoint.json"
        if file.is_file():
            epoch = int(json.loads(file.read_text())["epoch"])
            print(f"resuming after epoch {epoch} from {file}", flush=True)
            return epoch
    return 0


def save_checkpoint(epoch: int) -> None:
    """Remember the epoch."""
    if os.environ.get("FERMION_CHECKPOINT_DIR"):
        write(Path(os.environ["FERMION_CHECKPOINT_DIR"]) / "checkpoint.json", json.dumps({"epoch": epoch}).encode())


def report(epoch: int, epochs: int) -> None:
    """One line of progress."""
    done = epoch / epochs
    metrics = {"loss": round(1.0 - 0.9 * done, 6)}
    line = {"progress": round(100 * done, 2), "epoch": epoch, "epochs": epochs, "metrics": metrics, "at": time.time()}
    print(json.dumps(line), flush=True)


def misbehave(options: argparse.Namespace) -> None:
    """Everything that was asked for, the harmless first."""
    if options.claims_400_percent:
        print('{"progress": 400}', flush=True)
    if options.broken_json:
        print('{"progress": 3', flush=True)
    if options.bad_utf8:
        sys.stdout.buffer.write(b"\xff\xfe bytes that are no text \xc3\x28\n")
        sys.stdout.buffer.flush()
    for _ in range(options.spam * 1024):
        sys.stdout.write(LINE)
    if options.eat_memory:
        eat(options.eat_memory)
    if options.hang:
        print("hanging", flush=True)
        time.sleep(3600)
    if options.fail:
        raise RuntimeError("failing, as asked for")


def eat(mib: int) -> None:
    """Take memory in small steps, every page of it written to, and keep it for the rest of the run."""
    eaten: list[bytearray] = []
    for taken in range(0, mib, 16):
        eaten.append(bytearray(b"\x01") * (16 * MIB))
        print(f"{taken + 16} MiB taken", flush=True)
        time.sleep(0.02)
    globals()["EATEN"] = eaten


def save_model(options: argparse.Namespace) -> None:
    """The model: what it was made with, and a file of any size."""
    output = Path(os.environ.get("FERMION_OUTPUT_DIR", "."))
    if options.output_mib:
        with (output / "weights.bin").open("wb") as file:
            for number in range(options.output_mib):
                file.write(number.to_bytes(8, "big") * (MIB // 8))
    write(output / "metrics.json", b'{"loss": 0.1}\n')
    write(output / "model.json", json.dumps(vars(options), indent=2).encode() + b"\n")


def main() -> None:
    options = arguments()
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start = last_epoch()
    if start == 0 == options.after:
        misbehave(options)
    for epoch in range(start + 1, options.epochs + 1):
        time.sleep(options.seconds / options.epochs)
        save_checkpoint(epoch)
        report(epoch, options.epochs)
        if epoch == options.after:
            misbehave(options)
    save_model(options)


if __name__ == "__main__":
    main()
