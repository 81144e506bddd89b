"""A class of the Berkeley Function-Calling Leaderboard's stateful sets as an MCP server.

    bfcl_server.py CLASS SETTING.json      the initial state of the class, from a task
"""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

MODULES = {
    "GorillaFileSystem": "gorilla_file_system", "VehicleControlAPI": "vehicle_control", "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking", "MessageAPI": "message_api", "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api", "MathAPI": "math_api"}
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}


def made(name, setting):
    """An object of the class in its initial state."""
    module = f"bfcl_eval.eval_checker.multi_turn_eval.func_source_code.{MODULES[name]}"
    made = getattr(importlib.import_module(module), name)()
    if name != "MathAPI":
        made._load_scenario(json.loads(json.dumps(setting)))
    return made


def schema(value):
    """A schema of the set as JSON Schema."""
    if isinstance(value, list):
        return [schema(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: schema(one) for key, one in value.items()}
    if isinstance(found.get("type"), str):
        found["type"] = TYPES.get(found["type"], found["type"])
        if found["type"] is None:
            del found["type"]
    return found


def tools(name):
    import bfcl_eval
    docs = Path(bfcl_eval.__file__).parent / "data" / "multi_turn_func_doc" / f"{MODULES[name]}.json"
    docs = [json.loads(line) for line in docs.read_text().splitlines()]
    return [
        {"name": doc["name"], "description": doc["description"], "inputSchema": schema(doc["parameters"])}
        for doc in docs]


def call(object, name, arguments):
    """What a call gives, as JSON has it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result = getattr(object, name)(**arguments)
    except Exception as error:  # noqa: BLE001
        result = {"error": str(error)}
    return json.loads(json.dumps(result, default=str))


def main():
    name, setting = sys.argv[1:3]
    object = made(name, json.loads(Path(setting).read_text()))
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if "id" not in message:
            continue
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        if method == "initialize":
            answer["result"] = {
                "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": name, "version": "1"}}
        elif method == "tools/list":
            answer["result"] = {"tools": tools(name)}
        elif method == "tools/call":
            result = call(object, message["params"]["name"], message["params"].get("arguments") or {})
            answer["result"] = {"content": [], "structuredContent": {"value": result}}
        else:
            answer["error"] = {"code": -32601, "message": "unknown"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
