"""Runs a cell with two tools of this program over gRPC: python client.py HOST:PORT

Needs grpcio and grpcio-tools, and the interface, code_mode.proto, beside it."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

# Called at the same time where the cell does not wait for one before it calls the other.
TOOLS = {
    "add": lambda numbers: sum(numbers),
    "page": lambda input: "x" * input["length"],
}

sys.path.append(str(Path(__file__).resolve().parent))
messages, service = grpc.protos_and_services("code_mode.proto")

# The host takes messages of 64 MiB; gRPC's own default is 4.
most = [(f"grpc.max_{way}_message_length", 64 << 20) for way in ("receive", "send")]
host = service.CodeModeHostStub(grpc.insecure_channel(sys.argv[1], most))
lease = host.OpenSession(messages.OpenSessionRequest())
session = next(lease).opened.session_id
# The lease must be read as long as the session lives: it tells what happens to its cells.
threading.Thread(target=lambda: list(lease), daemon=True).start()


def answer(call):
    try:
        output = TOOLS[call.tool_name.name](json.loads(call.input_json))
        outcome = {"succeeded": messages.ToolCallSucceeded(output_json=json.dumps(output).encode())}
    except Exception as error:  # The cell gets it.
        outcome = {"failed": messages.ToolCallFailed(message=repr(error))}
    host.CompleteToolCall(messages.CompleteToolCallRequest(
        session_id=session, invocation_id=call.invocation_id, **outcome))


def answer_all(calls):
    with ThreadPoolExecutor(16) as pool:
        for call in calls:
            pool.submit(answer, call)


calls = host.SubscribeToToolCalls(messages.SubscribeToToolCallsRequest(session_id=session))
calls.initial_metadata()  # Comes when the subscription stands.
threading.Thread(target=answer_all, args=(calls,), daemon=True).start()

tools = [
    messages.ToolDefinition(
        name=name, tool_name=messages.ToolName(name=name), description=name, kind=messages.TOOL_KIND_FUNCTION)
    for name in TOOLS]
for event in host.Execute(messages.ExecuteRequest(
        session_id=session, execution_id="1", tool_call_id="call-1", enabled_tools=tools,
        source="""const [sum, page] = await Promise.all([tools.add([19, 23]), tools.page({ length: 5_000_000 })]);
                  text(sum); text(page.length)""")):
    for item in event.outcome.content_items:
        print(item.text.text)
host.CloseSession(messages.CloseSessionRequest(session_id=session))
