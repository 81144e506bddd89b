"""What the Codex CLI's host answered over gRPC, step by step, against a host of your choice.

    python3 tests/grpc_probe.py target/debug/code-mode serve

tests/fixtures/grpc_probe.json has the steps and the answers, and says what they mean;
grpc_codex_run.json is a whole run of the CLI in the same form. Installs
the packages of the client into target/grpc-clients. Exit status 0 where every answer is the
recorded one, or is one of those that may differ."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

try:
    import grpc
    import h2.connection
    import h2.events
    from google.protobuf.descriptor import FieldDescriptor as Field
except ImportError:
    from grpc_packages import python
    program = python()
    os.execv(program, [program, *sys.argv])

sys.path.append(str(ROOT / "code-mode-protocol" / "proto"))
pb = grpc.protos("code_mode.proto")
SERVICE = "/codex.code_mode.v1.CodeModeHost/"
STREAMS = {"OpenSession": "SessionEvent", "SubscribeToToolCalls": "ToolCall", "Execute": "ExecuteEvent"}
ANSWERS = {"Terminate": "WaitResponse"}
BUFFERED = "codex-code-mode-result-buffered-for-ns"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
           ("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1),
           ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
WAIT = 3.0


def message(descriptor, value):
    """A message as the fixture writes it."""
    made = getattr(pb, descriptor.name)()
    for name, given in value.items():
        field = descriptor.fields_by_name[name]

        def one(item):
            if field.type == Field.TYPE_MESSAGE:
                return message(field.message_type, item)
            if field.type == Field.TYPE_ENUM and isinstance(item, str):
                return field.enum_type.values_by_name[item].number
            return item.encode() if field.type == Field.TYPE_BYTES else item

        if isinstance(given, list):
            getattr(made, name).extend(one(item) for item in given)
        elif field.type == Field.TYPE_MESSAGE:
            getattr(made, name).CopyFrom(one(given))
        else:
            setattr(made, name, one(given))
    return made


def shown(made):
    """A message as the fixture shows it."""
    def one(field, item):
        if field.type == Field.TYPE_MESSAGE:
            return shown(item)
        if field.type == Field.TYPE_ENUM:
            return field.enum_type.values_by_number[item].name
        return item.decode() if field.type == Field.TYPE_BYTES else item

    def all_of(field, value):
        many = field.is_repeated
        return [one(field, item) for item in value] if many else one(field, value)

    return {field.name: all_of(field, value) for field, value in made.ListFields()
            if field.name != "code_mode_host_duration_ns"}


def status(error):
    return [error.code().name, error.details() or ""]


class Stream:
    """A response stream, read from its beginning."""

    def __init__(self, call, on_message=None):
        self.call, self.messages, self.at = call, [], 0
        self.changed, self.end, self.on_message = asyncio.Event(), None, on_message
        self.reading = asyncio.create_task(self.read())

    async def read(self):
        try:
            async for item in self.call:
                self.messages.append(item)
                if self.on_message:
                    await self.on_message(item)
                self.changed.set()
            self.end = ["OK", ""]
        except grpc.aio.AioRpcError as error:
            self.end = status(error)
        except asyncio.CancelledError:
            self.end = ["CANCELLED", ""]
        self.changed.set()

    async def next(self, wait=None):
        """The next message; None where the stream ended or the time is over."""
        end = time.monotonic() + (wait or 60)
        while self.at >= len(self.messages):
            if self.end is not None or wait == 0:
                return None
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), max(0, end - time.monotonic()))
            except asyncio.TimeoutError:
                return None
        self.at += 1
        return self.messages[self.at - 1]

    async def ended(self):
        while self.end is None:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)
        return self.end


class Probe:
    def __init__(self, probe, command, transport):
        self.probe, self.transport, self.names = probe, transport, {}
        self.sessions, self.streams, self.background, self.channels = {}, {}, {}, []
        listen = "grpc+stdio://" if transport == "stdio" else "grpc://127.0.0.1:0"
        self.command = [*command, "--listen", listen]
        self.spans, self.posts = [], []

    async def start(self):
        if self.probe.get("otel"):
            self.command += ["--otel-trace-exporter", self.receiver()]
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
        self.folder = tempfile.TemporaryDirectory()
        if self.transport == "tcp":
            self.line = (await self.process.stdout.readline()).decode().strip()
            self.target = self.line.removeprefix("http://")
        else:
            path = f"{self.folder.name}/s"
            self.server = await asyncio.start_unix_server(self.bridge, path)
            self.target = f"unix:{path}"
        self.channel = self.connect()

    def connect(self):
        self.channels.append(grpc.aio.insecure_channel(self.target, OPTIONS))
        return self.channels[-1]

    async def bridge(self, reader, writer):
        async def carry(source, sink, close):
            try:
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            except (ConnectionError, OSError):
                pass
            if close:
                sink.close()

        await asyncio.gather(carry(reader, self.process.stdin, False),
                             carry(self.process.stdout, writer, True))

    async def stop(self):
        for channel in self.channels:
            await channel.close(0)
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        if self.transport == "stdio":
            self.server.close()
        self.folder.cleanup()

    # Values.

    def value(self, given):
        """What a request's value stands for."""
        if isinstance(given, list):
            return [self.value(item) for item in given]
        if not isinstance(given, dict):
            return given
        if "ref" in given:
            return self.reference(given)
        if "repeat" in given:
            return given["repeat"] * given["times"]
        if set(given) == {"times", "of"}:
            return [self.value(given["of"])] * given["times"]
        return {name: self.value(item) for name, item in given.items()}

    def reference(self, given):
        of = self.streams.get(given["ref"])
        if "call" in given:
            text = of.messages[given["call"]].invocation_id
        elif "notification" in given:
            events = [m.notification for m in of.messages if m.HasField("notification")]
            text = events[given["notification"]].notification_id
        else:
            text = self.sessions[given["ref"]]
        return {None: text, "upper": text.upper(), "simple": text.replace("-", ""),
                "braced": f"{{{text}}}", "urn": f"urn:uuid:{text}"}[given.get("form")]

    def anonymous(self, answer):
        """An answer with names in the place of ids."""
        text = json.dumps(answer)
        names = {session: f"<{name}>" for name, session in self.sessions.items()}
        for name, stream in self.streams.items():
            notified = 0
            for number, item in enumerate(stream.messages):
                if isinstance(item, pb.ToolCall):
                    names[item.invocation_id] = f"<{name}.{number}>"
                elif isinstance(item, pb.SessionEvent) and item.HasField("notification"):
                    names[item.notification.notification_id] = f"<{name}.notification.{notified}>"
                    notified += 1
        for made in self.names:
            names[made] = "<e>"
        for real, name in names.items():
            text = text.replace(real, name)
        return json.loads(text)

    # Calls.

    def request(self, rpc, given):
        descriptor = pb.DESCRIPTOR.message_types_by_name[f"{rpc}Request"]
        return message(descriptor, self.value(given))

    def execution(self, given):
        request = {"session_id": {"ref": "s"}, "tool_call_id": "c", **given}
        if "execution_id" not in request:
            request["execution_id"] = str(uuid.uuid4())
            self.names[request["execution_id"]] = True
        return self.request("Execute", request)

    def stream(self, rpc, request, name, metadata=None, on_message=None, channel=None):
        answer = getattr(pb, STREAMS[rpc])
        method = (channel or self.channel).unary_stream(
            SERVICE + rpc, request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answer.FromString)
        stream = Stream(method(request, metadata=metadata), on_message)
        if name:
            self.streams[name] = stream
        return stream

    async def unary(self, rpc, request, step, channel=None):
        answer = getattr(pb, ANSWERS.get(rpc, f"{rpc}Response"))
        method = (channel or self.channel).unary_unary(
            SERVICE + rpc, request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answer.FromString)
        call = method(request)
        try:
            got = shown(await call)
        except grpc.aio.AioRpcError as error:
            return {"error": status(error)}
        header = dict(await call.initial_metadata()).get(BUFFERED)
        if header is not None:
            got["header"] = "0 or N" if step.get("free_header") else "0" if header == "0" else "N"
        return got

    async def drained(self, stream):
        got = []
        while (item := await stream.next()) is not None:
            got.append(shown(item))
        return [*got, {"end": await stream.ended()}]

    async def complete(self, session, call, outcome):
        request = {"session_id": session, "invocation_id": call.invocation_id, **outcome}
        return await self.unary("CompleteToolCall", self.request("CompleteToolCall", request), {})

    # Steps.

    async def step(self, step):
        began = time.monotonic()
        answer = await getattr(self, "do_" + step["do"].replace("-", "_"))(step)
        taken = (time.monotonic() - began) * 1000
        if "max_ms" in step:
            answer = {"in_time": taken <= step["max_ms"], "answer": answer}
        if "min_ms" in step:
            answer = {"held": taken >= step["min_ms"], "answer": answer}
        return self.anonymous(answer)

    def on(self, step):
        return self.background.get(step.get("on"))

    async def do_open(self, step):
        stream = self.stream("OpenSession", self.request("OpenSession", step["request"]),
                             step["as"], channel=self.on(step))
        first = await stream.next()
        if first is None:
            return {"end": await stream.ended()}
        self.sessions[step["as"]] = first.opened.session_id
        return shown(first)

    async def do_subscribe(self, step):
        session = self.sessions[step["session"]]
        request = {"session_id": session, "tool_names": step["tool_names"]}
        answer = step.get("answer")

        async def complete(call):
            # Each beside the others.
            asyncio.create_task(
                self.complete(session, call, {"succeeded": {"output_json": answer}}))

        stream = self.stream("SubscribeToToolCalls", self.request("SubscribeToToolCalls", request),
                             step["as"], on_message=complete if answer else None)
        stream.session = session
        await stream.call.initial_metadata()
        done = stream.call.done()
        if done:
            return {"error": await stream.ended()}
        return "ok"

    async def do_subscriptions(self, step):
        for number in range(step["count"]):
            given = {"as": f"sub{number}", "session": step["session"], "tool_names": []}
            await self.do_subscribe(given)

    async def do_call(self, step):
        request = self.request(step["rpc"], step["request"])
        if step["rpc"] in STREAMS:
            stream = self.stream(step["rpc"], request, None)
            first = await stream.next()
            return shown(first) if first is not None else {"end": await stream.ended()}
        return await self.unary(step["rpc"], request, step, self.on(step))

    async def do_start(self, step):
        request = self.request(step["rpc"], step["request"])
        self.background[step["as"]] = asyncio.create_task(self.unary(step["rpc"], request, step))
        await asyncio.sleep(0)

    async def do_join(self, step):
        return await self.background[step["of"]]

    async def do_execute(self, step):
        self.stream("Execute", self.execution(step["request"]), step["as"])

    async def do_read(self, step):
        stream = self.streams[step["of"]]
        item = await stream.next()
        return shown(item) if item is not None else {"end": await stream.ended()}

    async def do_drain(self, step):
        return await self.drained(self.streams[step["of"]])

    async def do_run(self, step):
        return await self.drained(self.stream("Execute", self.execution(step["request"]), None))

    async def do_many(self, step):
        runs = [self.do_run(step) for _ in range(step["count"])]
        done = await asyncio.gather(*runs)
        return {"yielded": sum("yielded" in run[1].get("outcome", {}) for run in done)}

    async def do_traced(self, step):
        calls = self.streams[step["of"]]
        known = len(calls.messages)
        given = step["traceparent"]
        stream = self.stream("Execute", self.execution(step["request"]), None,
                             metadata=[("traceparent", given)])
        end = (await self.drained(stream))[-1]["end"]
        _, trace, span, _ = given.split("-")
        spans, parents = [], []
        for call in calls.messages[known:]:
            version, of, own, flags = call.traceparent.split("-")
            spans.append(own)
            parents.append("-".join([version, "TRACE" if of == trace else "OTHER",
                                     "S" if own != span else own, flags]))
        return {"end": end, "traceparents": parents, "distinct": len(set(spans)) == len(spans)}

    async def do_cancel(self, step):
        if step["of"] in self.streams:
            self.streams[step["of"]].call.cancel()
        else:
            self.background[step["of"]].cancel()
        await asyncio.sleep(0.05)

    async def several(self, step):
        stream, got = self.streams[step["of"]], []
        if step["of"] in self.sessions and stream.at == 0:
            await stream.next()
        while len(got) < (step["count"] or sys.maxsize):
            item = await stream.next(WAIT if step["count"] else 0)
            if item is None:
                break
            got.append(shown(item))
        return got

    do_events = do_calls = several

    async def do_count(self, step):
        return len(await self.several(step))

    async def do_complete(self, step):
        stream = self.streams[step["of"]]
        outcome = {}
        if "succeeded" in step:
            outcome = {"succeeded": {"output_json": self.value(step["succeeded"])}}
        elif "failed" in step:
            outcome = {"failed": {"message": self.value(step["failed"])}}
        session = self.sessions[step["session"]] if "session" in step else stream.session
        return await self.complete(session, stream.messages[step["call"]], outcome)

    async def do_answer_all(self, step):
        stream = self.streams[step["of"]]

        async def complete(call):
            outcome = {"succeeded": {"output_json": step["answer"]}}
            asyncio.create_task(self.complete(stream.session, call, outcome))

        stream.on_message = complete
        for call in stream.messages:
            await complete(call)

    async def do_end(self, step):
        return {"end": await self.streams[step["of"]].ended()}

    async def do_bytes(self, step):
        path = SERVICE + step["rpc"]
        if step["rpc"].startswith("../"):
            path = "/" + step["rpc"][3:]
        data = bytes.fromhex(step["hex"])
        plain = {"request_serializer": lambda b: b, "response_deserializer": lambda b: b}
        try:
            if step.get("stream") or step["rpc"] in STREAMS:
                call = self.channel.unary_stream(path, **plain)(data)
                first = await call.read()
                self.keep = call
                return "ok" if first is not grpc.aio.EOF else {"end": status(call)}
            return (await self.channel.unary_unary(path, **plain)(data)).hex()
        except grpc.aio.AioRpcError as error:
            return {"error": status(error)}

    async def do_connection(self, step):
        self.background[step["as"]] = self.connect()

    async def do_drop_connection(self, _):
        await self.channels[0].close(0)

    async def do_http(self, step):
        host, port = self.target.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(step["request"].encode("latin-1"))
        line = (await reader.readline()).decode().strip()
        writer.close()
        return line

    async def do_http2(self, step):
        if self.transport == "stdio":
            reader, writer = self.process.stdout, self.process.stdin
            first = not hasattr(self, "http2")
            connection = self.http2 = h2.connection.H2Connection() if first else self.http2
        else:
            reader, writer = await asyncio.open_connection(*self.target.rsplit(":", 1))
            connection, first = h2.connection.H2Connection(), True
        if first:
            connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, [(":method", step["method"]), (":path", step["path"]),
                                         (":scheme", "http"), (":authority", "x")], end_stream=True)
        got = {}
        while True:
            writer.write(connection.data_to_send())
            for event in connection.receive_data(await asyncio.wait_for(reader.read(65536), 10)):
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    headers = {str(k, "ascii"): str(v, "ascii") for k, v in event.headers}
                    got.update({k: headers[k] for k in (":status", "grpc-status") if k in headers})
                if isinstance(event, h2.events.StreamEnded):
                    return got

    async def do_address(self, _):
        return re.sub(r":\d+$", ":PORT", self.line)

    async def do_sleep(self, step):
        await asyncio.sleep(step["ms"] / 1000)

    async def do_stdin(self, step):
        self.process.stdin.write(bytes.fromhex(step["hex"]))
        await self.process.stdin.drain()

    async def do_close_stdin(self, _):
        self.process.stdin.close()

    async def do_signal(self, step):
        self.process.send_signal(step["signal"])

    async def do_exit(self, _):
        return await asyncio.wait_for(self.process.wait(), 5)

    # Traces.

    def receiver(self):
        probe = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                probe.posts.append((self.path, self.headers["content-type"]))
                for resource in body["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        probe.spans.extend(scope["spans"])
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1/traces"

    async def do_spans(self, _):
        names = {span["spanId"]: span["name"] for span in self.spans}
        traced = [step["traceparent"] for step in self.probe["steps"] if "traceparent" in step]
        trace, remote = traced[0].split("-")[1:3]
        got = []
        for span in self.spans:
            parent = span.get("parentSpanId") or None
            attributes = {}
            for attribute in span.get("attributes", []):
                key = attribute["key"]
                # The library's own are not compared.
                if not re.match(r"code\.|thread\.|target$|busy_ns$|idle_ns$", key):
                    attributes[key] = next(iter(attribute["value"].values()))
            got.append({"name": span["name"], "trace": span["traceId"] == trace,
                        "parent": "remote" if parent == remote else names.get(parent),
                        "attributes": dict(sorted(attributes.items()))})
        got.sort(key=lambda span: (span["name"], json.dumps(span["attributes"])))
        return {"posts": sorted({tuple(post) for post in self.posts}), "spans": got}


def matches(got, expected):
    """Whether an answer is the recorded one. `*` stands for any rest of a text."""
    if isinstance(expected, str) and isinstance(got, str):
        if len(got) > 600:
            got = f"{got[:120]}...[{len(got)}]...{got[-120:]}"
        return got.startswith(expected[:-1]) if expected.endswith("*") else got == expected
    if isinstance(expected, dict) and isinstance(got, dict):
        return set(got) == set(expected) and all(matches(got[k], expected[k]) for k in expected)
    if isinstance(expected, list) and isinstance(got, (list, tuple)):
        return len(got) == len(expected) and all(map(matches, got, expected))
    return got == expected


async def replay(probe, command, transport):
    """What differs."""
    running = Probe(probe, command, transport)
    await running.start()
    try:
        for number, (step, expected) in enumerate(zip(probe["steps"], probe["expect"])):
            got = await asyncio.wait_for(running.step(step), 90)
            free = number in probe.get("free", [])
            if expected is not None and not matches(got, expected) and not free:
                return f"step {number}: {json.dumps(step)[:300]}\n  expected {json.dumps(expected)[:900]}\n  got      {json.dumps(got)[:900]}"
    finally:
        await running.stop()
    return None


async def main():
    probes = []
    for name in ("grpc_probe", "grpc_codex_run"):
        probes += json.loads((ROOT / f"tests/fixtures/{name}.json").read_text())["probes"]
    wanted = os.environ.get("PROBES", "").split()
    failed = ran = 0
    for probe in probes:
        if wanted and probe["name"] not in wanted:
            continue
        both = ["stdio", "tcp"] if probe["transport"] == "any" else [probe["transport"]]
        for transport in both:
            ran += 1
            differs = await replay(probe, sys.argv[1:], transport)
            if differs:
                failed += 1
                print(f"{probe['name']} over {transport}: {differs}")
    print(f"{ran} run, {failed} differ")
    return failed or not ran


sys.exit(1 if asyncio.run(main()) else 0)
