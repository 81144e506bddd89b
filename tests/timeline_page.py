"""Opens the page that `code-mode timeline` makes in a headless Chromium, and looks at what it drew.

    python3 tests/timeline_page.py [PROGRAM] [--picture FILE.png]

Needs `chromium` (or `google-chrome`) on PATH.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOOLS = """
[[tool]]
name = "search"
command = ["sh", "-c", "sleep \\"$1\\"; echo found", "sh", "{seconds}"]
[[tool]]
name = "fetch_page"
command = ["sh", "-c", "sleep \\"$1\\"; echo page", "sh", "{seconds}"]
[[tool]]
name = "broken"
command = ["sh", "-c", "sleep 0.05; exit 1"]
"""
PROGRAM = """
await tools.search({ seconds: 0.1 });
notify("searched");
const pages = [0.3, 0.12, 0.2, 0.25].map((seconds) => tools.fetch_page({ seconds }));
const failing = tools.broken({}).catch(() => {});
await Promise.all([...pages, failing]);
tools.search({ seconds: 5 }).catch(() => {});
await tools.fetch_page({ seconds: 0.08 });
text("<b>done</b>");
exit();
"""


def main():
    arguments = sys.argv[1:]
    picture = None
    if "--picture" in arguments:
        at = arguments.index("--picture")
        picture = os.path.abspath(arguments[at + 1])
        del arguments[at:at + 2]
    program = os.path.abspath(arguments[0] if arguments else "target/release/code-mode")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("needs chromium or google-chrome on PATH")
    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, name) for name in ("tools.toml", "cell.js", "trace.jsonl")}
        for name, text in (("tools.toml", TOOLS), ("cell.js", PROGRAM)):
            with open(files[name], "w") as file:
                file.write(text)
        subprocess.run([program, "run", "--tools", files["tools.toml"], "--trace", files["trace.jsonl"],
                        "--trace-contents", files["cell.js"]], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([program, "timeline", files["trace.jsonl"]], check=True, stdout=subprocess.DEVNULL)
        open_page = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                     "--window-size=1100,440", f"--user-data-dir={folder}/profile", "--enable-logging=stderr"]
        page = f"file://{files['trace.jsonl']}.html"
        drawn = subprocess.run([*open_page, "--dump-dom", page], check=True, capture_output=True, text=True)
        bars = re.findall(r'<div class="bar (\w+)"', drawn.stdout)
        found = {kind: bars.count(kind) for kind in ("cell", "succeeded", "failed", "cancelled")}
        expected = {"cell": 1, "succeeded": 6, "failed": 1, "cancelled": 1}
        assert found == expected, f"{found} instead of {expected}"
        marks = re.findall(r'<div class="mark (\w+)"', drawn.stdout)
        assert marks == ["notification", "yield"], marks
        # The cell, and the five calls that ran side by side. Marks and processor time have other lanes.
        assert drawn.stdout.count('class="lane"') == 6, drawn.stdout.count('class="lane"')
        assert drawn.stdout.count('class="lane marks"') == 2, drawn.stdout.count('class="lane marks"')
        assert drawn.stdout.count('class="lane thin"') == 1, drawn.stdout.count('class="lane thin"')
        # The program with its lines, and the line of each call.
        assert drawn.stdout.count('class="line"') == len(PROGRAM.split("\n")), drawn.stdout.count('class="line"')
        assert re.search(r'title="tool-1 search: succeeded, [\d.]+ ms, line 2"', drawn.stdout), drawn.stdout
        ticks = re.findall(r'<span class="" style="left: [^"]*">([^<]*)</span>', drawn.stdout)
        steps = [float(tick.split()[0]) for tick in ticks]
        assert len(steps) >= 5 and steps[1] in (10, 20, 50, 100, 200, 500, 1000), ticks
        assert "CONSOLE" not in drawn.stderr, drawn.stderr
        if picture:
            subprocess.run([*open_page, f"--screenshot={picture}", page], check=True, capture_output=True)
            narrow = [*open_page, "--window-size=420,700", f"--screenshot={picture}.narrow.png", page]
            subprocess.run(narrow, check=True, capture_output=True)
    print("the page shows one cell, its eight calls with their lines, its notification, its yield and its program")


main()
