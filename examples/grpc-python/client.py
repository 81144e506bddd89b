"""Runs a cell with a tool of this program over gRPC: python client.py HOST:PORT

Needs grpcio and grpcio-tools, and the interface: code-mode-protocol/proto/code_mode.proto."""

import json
import sys
import threading
from pathlib import Path

import grpc

sys.path.append(str(Path(__file__).resolve().parents[2] / "code-mode-protocol" / "proto"))
messages, service = grpc.protos_and_services("code_mode.proto")

host = service.CodeModeHostStub(grpc.insecure_channel(sys.argv[1]))
lease = host.OpenSession(messages.OpenSessionRequest())
session = next(lease).opened.session_id
# The lease must be read as long as the session lives: it tells what happens to its cells.
threading.Thread(target=lambda: list(lease), daemon=True).start()


def answer(calls):
    for call in calls:
        numbers = json.loads(call.input_json)
        succeeded = messages.ToolCallSucceeded(output_json=json.dumps(sum(numbers)).encode())
        host.CompleteToolCall(messages.CompleteToolCallRequest(
            session_id=session, invocation_id=call.invocation_id, succeeded=succeeded))


calls = host.SubscribeToToolCalls(messages.SubscribeToToolCallsRequest(session_id=session))
calls.initial_metadata()  # Comes when the subscription stands.
threading.Thread(target=answer, args=(calls,), daemon=True).start()

add = messages.ToolDefinition(
    name="add", tool_name=messages.ToolName(name="add"), description="The sum of numbers",
    kind=messages.TOOL_KIND_FUNCTION)
for event in host.Execute(messages.ExecuteRequest(
        session_id=session, execution_id="1", tool_call_id="call-1", enabled_tools=[add],
        source="text(await tools.add([19, 23]))")):
    for item in event.outcome.content_items:
        print(item.text.text)
host.CloseSession(messages.CloseSessionRequest(session_id=session))
