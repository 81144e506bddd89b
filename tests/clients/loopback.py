"""A scripted model on loopback, in place of a client's own."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback(BaseHTTPRequestHandler):
    """What handlers of every model's wire share."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        """The request's JSON; an empty object where it has none."""
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")

    def reply(self, text, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def reply_events(self, events, end=""):
        """Server-sent events, named after their types where they have some."""
        names = [f"event: {event['type']}\n" if "type" in event else "" for event in events]
        text = "".join(f"{name}data: {json.dumps(event)}\n\n" for name, event in zip(names, events))
        self.reply(text + end, "text/event-stream")


def serve(handler):
    """Serves until the process ends; returns the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def codex_turn(items):
    """The events of one turn of a model of the Codex CLI."""
    usage = {"input_tokens": 0, "input_tokens_details": None, "output_tokens": 0,
             "output_tokens_details": None, "total_tokens": 0}
    return [
        {"type": "response.created", "response": {"id": "r"}},
        *({"type": "response.output_item.done", "output_index": index, "item": item}
          for index, item in enumerate(items)),
        {"type": "response.completed", "response": {"id": "r", "usage": usage}}]


def codex_message(text):
    """What the model of the Codex CLI says at the end."""
    return {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def codex_config(address):
    """The configuration of a Codex CLI whose model is at this address."""
    return f"""
model = "gpt-5.1-codex"
model_provider = "local"
approval_policy = "never"
sandbox_mode = "danger-full-access"
[model_providers.local]
name = "local"
base_url = "{address}/v1"
wire_api = "responses"
requires_openai_auth = false
supports_websockets = false
"""
