"""opencode, headless, with a scripted model on loopback in place of its own.

Run with the folder of its package as the third argument.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from chat_model import Chat

PROGRAM, CONFIG, HOME = sys.argv[1:4]


def main():
    chat = Chat("code_", lambda content: [("text", content)])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "opencode.json").write_text(json.dumps({
            "mcp": {"code": {"type": "local", "command": [PROGRAM, "mcp", "--linger", "0ms", "--config", CONFIG]}},
            "provider": {"local": {
                "npm": "@ai-sdk/openai-compatible", "options": {"baseURL": f"{chat.serve()}/v1", "apiKey": "none"},
                "models": {"scripted": {
                    "name": "scripted", "attachment": True,
                    "modalities": {"input": ["text", "image"], "output": ["text"]}}}}},
            "model": "local/scripted", "small_model": "local/scripted", "share": "disabled", "autoupdate": False}))
        environment = {
            **os.environ, "HOME": folder, "OPENCODE_CONFIG": f"{folder}/opencode.json", "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
        done = subprocess.run(
            [f"{HOME}/node_modules/.bin/opencode", "run", "--model", "local/scripted", "go"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110)
    chat.report(done)


main()
