"""The results of `python -m tests.gpu`, written after each row, in one folder without subfolders:

results.json    all rows
summary.txt     the same as a table
errors.txt      the first traceback of each stage, and the messages of processes that ended
metrics.csv     every epoch of the training runs (tests/gpu/stages/training.py)
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

FILES = ("results.json", "summary.txt", "errors.txt", "metrics.csv")


class Output:
    """Rows by stage. Stages in the background add theirs from another thread."""

    def __init__(self, folder: Path, command: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        self.folder, self.command, self.start = folder, command, time.time()
        self.results: dict[str, dict[str, Any]] = {}
        self.traced: set[tuple[str, str]] = set()
        self.lock = threading.Lock()

    def begin(self, name: str) -> None:
        print(f"{name} ...", flush=True)
        with self.lock:
            self.results[name] = {"end": "unfinished", "seconds": 0.0, "rows": []}
            self._write()

    def add(self, name: str, row: dict[str, Any]) -> None:
        with self.lock:
            traceback = row.pop("traceback", "")
            if row.get("wrong"):
                self._trace(name, row["what"], traceback)
            self.results[name]["rows"].append(row)
            print(f"  {describe(row)}", flush=True)
            self._write()

    def end(self, name: str, end: str, seconds: float = 0.0, errors: str = "") -> None:
        with self.lock:
            self._trace(name, end, errors)
            self.results[name] |= {"end": end, "seconds": round(seconds, 1)}
            print(f"{name}: {end}, {seconds:.0f} s", flush=True)
            self._write()

    def _trace(self, name: str, what: str, text: str) -> None:
        """Append a traceback to errors.txt, unless the stage has one with the same last line."""
        key = name, text.strip().rpartition("\n")[2]
        if text.strip() and key not in self.traced:
            self.traced.add(key)
            with (self.folder / "errors.txt").open("a") as file:
                file.write(f"== {name}: {what}\n{text.rstrip()}\n\n")

    def _write(self) -> None:
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (self.folder / "summary.txt").write_text(self.summary())

    def summary(self) -> str:
        lines = [f"python -m tests.gpu {self.command}, {time.time() - self.start:.0f} s"]
        for name, result in self.results.items():
            lines += ["", f"{name}: {result['end']}, {result['seconds']} s"]
            lines += [f"  {describe(row)}" for row in result["rows"]]
        wrong = self.wrong()
        return "\n".join([*lines, "", f"WRONG: {', '.join(wrong)}" if wrong else "nothing is wrong"]) + "\n"

    def wrong(self) -> list[str]:
        """The names of the stages and rows that are wrong."""
        found = []
        for name, result in self.results.items():
            found += [name] if result["end"].startswith(("failed", "stopped", "unfinished")) else []
            found += [f"{name}: {row['what']}" for row in result["rows"] if row.get("wrong")]
        return found


def describe(row: dict[str, Any]) -> str:
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else str(row["value"])
    rest = "  ".join(
        f"{key} {content:.3g}" if isinstance(content, float) else f"{key} {content}"
        for key, content in row.items()
        if key not in ("what", "value", "unit", "wrong")
    )
    rest += "  <-- WRONG" if row.get("wrong") else ""
    return f"{row['what']:48} {value:>10} {row.get('unit', ''):8} {rest}".rstrip()
