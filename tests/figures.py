#!/usr/bin/env python3
"""Tables of figures in the documents, each from a file of results.

    COMMAND | tests/figures.py record NAME COMMAND   keep the tables that a command prints
    tests/figures.py write                           write the tables into the documents
    tests/figures.py check                           fail where a document and its file differ

A result is docs/figures/NAME.json: the columns and rows of the Markdown tables that the
command printed, with its date, revision and machine. In a document a table is between
`<!-- figures NAME -->` and `<!-- end -->`; `<!-- figures NAME: ROW; ROW -->` has these rows
only. Nobody writes a figure by hand.
"""
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "figures"
PLACE = re.compile(r"(<!-- figures ([\w-]+)(?:: ([^>]*?))? -->\n).*?(<!-- end -->)", re.S)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def record(name, command):
    """Keeps the table that standard input has, and shows the input."""
    # Before the command's output: an edit while it runs does not change what it measures.
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    columns, rows = None, []
    for line in sys.stdin:
        print(line, end="", flush=True)
        if not line.lstrip().startswith("|"):
            continue
        if set(line.strip()) <= set("|-: "):
            continue
        if columns is None:
            columns = cells(line)
        else:
            rows.append(cells(line))
    if not rows or any(len(row) != len(columns) for row in rows):
        sys.exit("figures: standard input has no table")
    result = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "revision": revision,
        "processors": os.cpu_count(),
        "columns": columns,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def table(name, wanted):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    rows = result["rows"]
    if wanted:
        by_name = {row[0]: row for row in rows}
        rows = [by_name[row.strip()] for row in wanted.split(";")]
    lines = [result["columns"], ["---", *["---:"] * (len(result["columns"]) - 1)], *rows]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    run = f"Run of {result['date']} at revision {result['revision']}, {result['processors']} processors: `{result['command']}`"
    return f"{text}\n{run}\n"


def documents():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        before = path.read_text()
        after = PLACE.sub(lambda m: m[1] + "\n" + table(m[2], m[3]) + "\n" + m[4], before)
        yield path, before, after


def main():
    match sys.argv[1:]:
        case ["record", name, command]:
            record(name, command)
        case ["write"]:
            for path, before, after in documents():
                if before != after:
                    path.write_text(after)
                    print(f"wrote {path.relative_to(ROOT)}")
        case ["check"]:
            stale = [str(path.relative_to(ROOT)) for path, before, after in documents() if before != after]
            if stale:
                sys.exit(f"figures: {', '.join(stale)} and docs/figures differ; run tests/figures.py write")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
