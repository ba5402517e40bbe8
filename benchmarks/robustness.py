"""Odd, damaged and extreme MIDI files: each is read, or refused by a typed error, in bounded time and memory.

    python benchmarks/robustness.py --data ../shared/robustness/robustness-shared.tar.xz [--json out.json] [--verbose]

`--data` is the archive or the folder that it unpacks to; its `index.csv` says what is right for each file. Every file
goes through both dialects in a worker process that is watched from outside. Violations (exit status 1):
- the process ends, hangs (10 s; 60 s above 1 MB), or needs more than 2 GiB;
- any exception but a `ValueError` with a `code` and a one-line message that names the file;
- a `LOAD` file that gives neither tokens nor the typed "no notes" answer; a `REJECT` file that gives tokens;
- ids outside the table, a broken grammar, music that does not come back (`encode(decode(ids)) == ids`, through MIDI
  bytes), or another result the second time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path


SECONDS, SECONDS_LARGE, LARGE = 10.0, 60.0, 1_000_000
MEMORY = 2 << 30
STRICT_UP_TO = 200_000  # tokens; the grammar check of a million notes takes longer than the limit


def _outcome(encode, path: Path) -> tuple[str, list[int] | None, str]:
    """(outcome, ids, message): "tokens", the error's code, or "untyped"."""
    try:
        return "tokens", encode(path), ""
    except ValueError as error:
        code, message = getattr(error, "code", None), str(error)
        if not isinstance(code, str):
            return "untyped", None, f"{type(error).__name__}: {message[:200]}"
        return code, None, message
    except Exception as error:
        return "untyped", None, f"{type(error).__name__}: {str(error)[:200]}"


def check_file(path: Path, expect: str, metric, mortm) -> dict:
    """Reads one file in both dialects; the dictionary has `violations` (a list of words)."""
    violations = []
    began = time.perf_counter()
    outcome, ids, message = _outcome(metric.encode_midi, path)
    encode_seconds = time.perf_counter() - began
    if outcome == "untyped":
        violations.append(message)
    elif outcome == "tokens":
        violations += [] if expect != "REJECT" else ["a file to be rejected gave tokens"]
        size = len(metric)
        if not ids or min(ids) < 0 or max(ids) >= size:
            violations.append("ids outside the table")
        elif _outcome(metric.encode_midi, path)[1] != ids:
            violations.append("another result the second time")
        else:
            try:
                music = metric.decode_midi(ids, strict=len(ids) <= STRICT_UP_TO)
                if metric.encode_midi(music.dumps_midi()) != ids:
                    violations.append("encode(decode(ids)) differs")
            except Exception as error:
                violations.append(f"decoding: {type(error).__name__}: {str(error)[:160]}")
    else:
        if expect == "LOAD" and outcome != "midi.empty":
            violations.append(f"a file to be loaded was refused: {message[:160]}")
        if path.name not in message or "\n" in message:
            violations.append(f"the message does not name the file in one line: {message[:160]!r}")
    other, other_ids, other_message = _outcome(mortm.encode_midi, path)
    if other == "untyped":
        violations.append(f"mortm: {other_message}")
    elif other == "tokens":
        if min(other_ids) < 0 or max(other_ids) >= len(mortm) or mortm.encode_midi(path) != other_ids:
            violations.append("mortm: ids outside the table, or another result the second time")
        else:
            try:
                mortm.decode_midi(other_ids).dumps_midi()
            except Exception as error:
                violations.append(f"mortm: decoding: {type(error).__name__}: {str(error)[:160]}")
    elif path.name not in other_message or "\n" in other_message:
        violations.append(f"mortm: the message does not name the file: {other_message[:160]!r}")
    return {
        "outcome": outcome,
        "mortm": other,
        "tokens": len(ids) if ids is not None else 0,
        "message": message,
        "encode_seconds": encode_seconds,
        "violations": violations,
    }


def _worker(pipe) -> None:
    """Serves (path, expectation) until the pipe closes."""
    from mortm_hf import MortmTokenizer

    metric, mortm = MortmTokenizer(), MortmTokenizer(preset="pro2", dialect="mortm")
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            path, expect = pipe.recv()
            began = time.perf_counter()
            result = check_file(Path(path), expect, metric, mortm)
            result["seconds"] = time.perf_counter() - began
            result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send(result)


class Watched:
    """A worker process that is replaced when it dies or hangs."""

    def __init__(self):
        self.context = multiprocessing.get_context("spawn")
        self.process = None

    def _start(self):
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_worker, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(300):
            raise RuntimeError("the worker process did not start")
        self.pipe.recv()

    def check(self, path: Path, expect: str, limit: float) -> dict:
        """The result of one file; a hang or a dead process is a violation."""
        if self.process is None:
            self._start()
        failure = None
        try:
            self.pipe.send((str(path), expect))
            if self.pipe.poll(limit):
                return self.pipe.recv()
            failure = f"no answer within {limit:.0f} s"
        except (EOFError, ConnectionError):
            self.process.join(5)
            failure = f"the process ended with status {self.process.exitcode}"
        self.close()
        return {
            "outcome": "dead",
            "mortm": "dead",
            "tokens": 0,
            "message": failure,
            "seconds": limit,
            "encode_seconds": limit,
            "peak_bytes": 0,
            "violations": [failure],
        }

    def close(self):
        """Ends the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def run(folder: Path, verbose: bool = False) -> list[dict]:
    """Checks every file of the folder's `index.csv`."""
    with open(folder / "index.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    worker, results = Watched(), []
    try:
        for number, row in enumerate(rows):
            path = folder / row["path"]
            size = path.stat().st_size
            result = worker.check(path, row["expect"], 3 * (SECONDS_LARGE if size > LARGE else SECONDS))
            # a file is read several times: the limits are for one pass
            if result["encode_seconds"] > (SECONDS_LARGE if size > LARGE else SECONDS):
                result["violations"].append(f"encoding took {result['encode_seconds']:.1f} s")
            if result["peak_bytes"] > MEMORY:
                result["violations"].append(f"{result['peak_bytes'] / 2**30:.2f} GiB")
                worker.close()
            results.append({"path": row["path"], "class": row["cls"], "expect": row["expect"], **result})
            if verbose or result["violations"]:
                mark = "; ".join(result["violations"]) or "ok"
                print(f"{row['path']}: {row['expect']} -> {result['outcome']} / {result['mortm']}: {mark}", flush=True)
            elif sys.stderr.isatty():
                print(f"\r{number + 1}/{len(rows)}", end="", file=sys.stderr)
    finally:
        worker.close()
    return results


def table(results: list[dict]) -> str:
    """Outcomes by expectation and class, and the extremes."""
    lines = [f"{'class':44} {'files':>5} {'tokens':>6} {'empty':>6} {'refused':>7} {'bad':>4} {'slowest s':>10}"]
    groups = sorted({(r["expect"], r["class"]) for r in results})
    for expect in ("LOAD", "LOAD_OR_REJECT", "REJECT"):
        for _, name in [g for g in groups if g[0] == expect] + [(expect, None)]:
            part = [r for r in results if r["expect"] == expect and name in (None, r["class"])]
            if not part:
                continue
            kinds = Counter({"tokens": "tokens", "midi.empty": "empty"}.get(r["outcome"], "refused") for r in part)
            bad = sum(bool(r["violations"]) for r in part)
            title = f"{expect}: all" if name is None else f"  {name}"
            counts = f"{len(part):5d} {kinds['tokens']:6d} {kinds['empty']:6d} {kinds['refused']:7d} {bad:4d}"
            lines.append(f"{title:44} {counts} {max(r['encode_seconds'] for r in part):10.3f}")
    both = Counter(r["mortm"] for r in results)
    lines.append("mortm dialect: " + ", ".join(f"{name} {count}" for name, count in both.most_common()))
    lines.append(f"peak memory of the process: {max(r['peak_bytes'] for r in results) / 2**20:.0f} MiB")
    return "\n".join(lines)


def main(argv=None) -> int:
    """Command line; 0 when nothing is violated."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, type=Path, help="the archive (.tar.xz) or the unpacked folder")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--verbose", action="store_true", help="one line for each file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data
        if not folder.exists():
            parser.error(f"no such file or folder: {folder}")
        if folder.is_file():
            with tarfile.open(folder) as archive:
                archive.extractall(scratch, filter="data")
            folder = Path(scratch)
        indices = sorted(folder.glob("**/index.csv"))
        if not indices:
            parser.error(f"no index.csv in {arguments.data}")
        results = run(indices[0].parent, arguments.verbose)
    print(table(results))
    bad = [r for r in results if r["violations"]]
    print(f"{len(results)} files, {len(bad)} with violations")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
