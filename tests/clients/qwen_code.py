"""Qwen Code, headless, with a scripted model on loopback in place of its own.

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


def blocks_of(content):
    if isinstance(content, str):
        return [("text", content)]
    kinds = {"text": "text", "image_url": "image"}
    return [(kinds.get(part["type"], part["type"]), part.get("text", "")) for part in content]


def main():
    chat = Chat("mcp__code__", blocks_of)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / ".qwen" / "settings.json"
        settings.parent.mkdir()
        settings.write_text(json.dumps({
            "mcpServers": {"code": {"command": PROGRAM, "args": ["mcp", "--linger", "0ms", "--config", CONFIG], "trust": True,
                                    "alwaysLoadTools": True}},
            "security": {"auth": {"selectedType": "openai"}}, "privacy": {"usageStatisticsEnabled": False}}))
        environment = {
            **os.environ, "HOME": folder, "OPENAI_API_KEY": "none", "OPENAI_MODEL": "scripted",
            "OPENAI_BASE_URL": f"{chat.serve()}/v1"}
        done = subprocess.run(
            [f"{HOME}/node_modules/.bin/qwen", "-p", "go", "--approval-mode", "yolo"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110)
    chat.report(done)


main()
