"""The scenario for clients whose model is played by a script."""

import json
import os
import re
import time
from pathlib import Path

CODE = json.loads((Path(__file__).parent / "scenario.json").read_text().replace("SLOW", os.environ["SLOW_SECONDS"]))


def script(seen):
    """The model: yields calls as (tool, arguments) lists and is sent their blocks."""
    program = lambda name: ("exec", {"code": CODE[name]})
    for name in ["five", "error", "image", "number", "megabyte", "store", "load", "approval"]:
        [seen[name]] = yield [program(name)]
    seen["two"] = yield [program("five"), program("load")]
    began = time.monotonic()
    [blocks] = yield [program("slow")]
    seen["first_answer_ms"] = round((time.monotonic() - began) * 1000)
    waits = 0
    while (running := re.search(r"cell_id: (\S+)", blocks[0][1])) and waits < 20:
        waits += 1
        [blocks] = yield [("wait", {"cell_id": running.group(1)})]
    seen["slow"], seen["waits"] = blocks, waits
    [seen["after"]] = yield [program("after")]
