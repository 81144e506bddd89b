#!/usr/bin/env python3
"""Kills `code-mode run --durable` at random moments until its script has ended, and checks that each tool ran
once and that no output is missing.

    python3 tests/durable_kills.py target/debug/code-mode 20

The script calls tools at once and one after the other, sets timers and races, catches errors and stores values. Its tools
append a line to a file. A tool whose call had no answer at a kill fails in the script, and may be in the file or not.
"""
import collections, os, pathlib, random, signal, subprocess, sys, tempfile, time

SCRIPT = """
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const call = async (n) => {
  try { return await tools.once({ n: String(n) }); } catch (error) { return 'failed ' + n; }
};
for (let i = 0; i < 8; i++) {
  const raced = call(3 * i + 2);
  await Promise.all([call(3 * i), call(3 * i + 1), Promise.race([raced, sleep(5)])]);
  await raced;
  text('round ' + i + '\\n');
  store('round', i);
  await sleep(Math.random() * 30);
}
text('end\\n');
"""
TOOLS = """
[[tool]]
name = "once"
command = ["sh", "-c", 'echo "$0" >> {log}; echo "$0"', "{{n}}"]
"""


def one(program, rng):
    """Runs the script to its end through kills. Returns how many kills it took."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "script.js").write_text(SCRIPT)
        (folder / "tools.toml").write_text(TOOLS.format(log=folder / "log"))
        command = [program, "run", "--durable", "kills", "--journal", folder / "journal", "--tools", folder / "tools.toml", folder / "script.js"]
        shown, kills = [], 0
        while True:
            with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
                try:
                    # Each life is longer than the one before, so that the last one reaches the end.
                    child.wait(rng.uniform(0.02, 0.2 + 0.05 * kills))
                except subprocess.TimeoutExpired:
                    child.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
                    child.wait()
                    kills += 1
            shown += (folder / "out").read_text().splitlines()
            if child.returncode == 0:
                break
            listed = subprocess.run([program, "journal", "ls", "--journal", folder / "journal"], capture_output=True, text=True).stdout
            if "end" in shown and "0 running, 0 ended" in listed:
                # The kill came after the end, and before the process could exit.
                break
            said = (folder / "err").read_text()
            assert child.returncode in (-signal.SIGKILL, 130, 143), f"exit status {child.returncode}: {said}"
        calls = collections.Counter((folder / "log").read_text().split())
        twice = [call for call, times in calls.items() if times > 1]
        assert not twice, f"called twice: {twice}"
        # Lines that were shown at a kill may be shown again, in order.
        expected = [f"round {i}" for i in range(8)] + ["end"]
        for line in expected:
            assert line in shown, f"missing: {line}: {shown}"
        last = -1
        for line in shown:
            at = expected.index(line)
            assert at <= last + 1, f"out of order: {shown}"
            last = max(last, at)
        return kills


def main():
    program, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns()
    print(f"seed {seed}")
    rng = random.Random(seed)
    kills = sum(one(program, rng) for _ in range(rounds))
    print(f"{rounds} scripts ended after {kills} kills: each tool ran once, and no output is missing")


main()
