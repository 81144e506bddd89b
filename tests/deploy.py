"""What `docs/deploy.md` says, tried: the image, and two hosts behind nginx, one of which is killed.

    python3 tests/deploy.py target/debug/code-mode

As root on Linux, for `chroot` and another user. Installs nginx and the packages of the gRPC
client if they are missing. Exit status 0 where everything holds."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

from grpc_packages import python

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a-token-that-nobody-guesses"


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def until(true, what):
    """Waits for what another process does."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def image(program, home):
    """The image is the same each time, and its program runs in it, as its user."""
    archives = [home / "one.tar", home / "two.tar"]
    for archive in archives:
        subprocess.run([sys.executable, ROOT / "examples/deploy/image.py", program, archive],
                       check=True, stdout=subprocess.DEVNULL)
    assert archives[0].read_bytes() == archives[1].read_bytes(), "another image each time"
    root = home / "root"
    with tarfile.open(archives[0]) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]
        config = json.load(archive.extractfile(manifest["Config"]))["config"]
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as content:
                content.extractall(root, filter="tar")
    assert config["User"] == "65532:65532"
    linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    if "statically linked" in linked:
        assert not list(root.rglob("*.so*")), "libraries beside the program"
    inside = ["chroot", f"--userspec={config['User']}", root, *config["Entrypoint"], "run", "-"]
    ran = subprocess.run(inside, input="text(6 * 7)", capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran
    print("image: ok")


class Hosts:
    """Two hosts and the balancer of the example, on ports of this machine."""

    def __init__(self, program, home):
        (home / "tokens").write_text(TOKEN)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
             "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext",
             "basicConstraints=critical,CA:FALSE", "-keyout", home / "tls.key",
             "-out", home / "tls.crt"], check=True, capture_output=True)
        self.program, self.home = program, home
        self.hosts, addresses = [], []
        for _ in range(2):
            host = subprocess.Popen(
                [program, "serve", "--listen=grpc://127.0.0.1:0", f"--token-file={home}/tokens"],
                stdout=subprocess.PIPE, text=True)
            self.hosts.append(host)
            addresses.append(host.stdout.readline().strip().removeprefix("http://"))
        self.port = free_port()
        config = (ROOT / "examples/deploy/nginx.conf").read_text()
        for number, address in zip((11, 12), addresses):
            config = config.replace(f"10.89.7.{number}:9000", address)
        config = config.replace("listen 9000", f"listen 127.0.0.1:{self.port}")
        config = config.replace("/run/secrets", str(home))
        top = f"daemon off; pid {home}/pid; error_log stderr;\n"
        config = config.replace("http {", f"http {{ access_log off; client_body_temp_path {home};", 1)
        (home / "nginx.conf").write_text(top + config)
        self.nginx = subprocess.Popen(["nginx", "-p", home, "-c", home / "nginx.conf"],
                                      stderr=subprocess.PIPE, text=True)
        until(self.answers, "nginx does not listen")
        # Nobody waits for what it says of the host that is killed.
        threading.Thread(target=self.nginx.stderr.read, daemon=True).start()

    def answers(self):
        assert self.nginx.poll() is None, self.nginx.stderr.read()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self):
        for process in [*self.hosts, self.nginx]:
            process.terminate()
            process.wait(timeout=30)


def borrowed(hosts):
    """A program on this machine borrows its worker by way of the balancer."""
    options = [f"--worker-host=https://localhost:{hosts.port}", f"--worker-ca={hosts.home}/tls.crt",
               f"--worker-token-file={hosts.home}/tokens"]
    ran = subprocess.run([hosts.program, "run", *options, "-"], input="text(6 * 7)",
                         capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran
    print("borrowed worker: ok")


def sessions(hosts):
    """Each session's requests reach its host; a host that is killed takes only its own."""
    import grpc
    sys.path.append(str(ROOT / "code-mode-protocol/proto"))
    messages, service = grpc.protos_and_services("code_mode.proto")
    roots = grpc.ssl_channel_credentials((hosts.home / "tls.crt").read_bytes())
    token = grpc.access_token_call_credentials(TOKEN)
    channel = grpc.secure_channel(f"localhost:{hosts.port}",
                                  grpc.composite_channel_credentials(roots, token))
    host = service.CodeModeHostStub(channel)

    def open_session():
        lease = host.OpenSession(messages.OpenSessionRequest())
        route = dict(lease.initial_metadata())["x-code-mode-route"]
        session = next(lease).opened.session_id
        threading.Thread(target=read, args=(lease,), daemon=True).start()
        return session, [("x-code-mode-route", route)]

    def read(lease):
        try:
            list(lease)
        except grpc.RpcError:
            pass

    def run(session, route, number):
        request = messages.ExecuteRequest(
            session_id=session, execution_id=str(number), tool_call_id="c",
            source="store('n', (load('n') ?? 0) + 1); text(load('n'))")
        events = list(host.Execute(request, metadata=route, timeout=30))
        return events[-1].outcome.content_items[0].text.text

    opened = [open_session() for _ in range(8)]
    routes = {route[0][1] for _, route in opened}
    assert routes == {"host-1", "host-2"}, routes
    for number in (1, 2):
        for session, route in opened:
            assert run(session, route, number) == str(number)
    hosts.hosts[0].send_signal(signal.SIGKILL)
    hosts.hosts[0].wait()
    for session, route in opened:
        if route[0][1] == "host-2":
            assert run(session, route, 3) == "3"
            continue
        try:
            run(session, route, 3)
        except grpc.RpcError:
            # What the balancer makes of it: mostly UNAVAILABLE.
            continue
        raise AssertionError("a session of the killed host continues")
    for _ in range(4):
        session, route = open_session()
        assert route[0][1] == "host-2" and run(session, route, 1) == "1"
    channel.close()
    print("sessions behind a balancer: ok")


def main():
    try:
        import grpc_tools  # noqa: F401
    except ImportError:
        program = python()
        os.execv(program, [program, *sys.argv])
    for command, package in [("nginx", "nginx-light"), ("openssl", "openssl")]:
        if shutil.which(command) is None:
            subprocess.run(["apt-get", "install", "-y", "-qq", package], check=True,
                           stdout=subprocess.DEVNULL)
    program = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        # The image's user looks in here.
        home.chmod(0o755)
        image(program, home)
        hosts = Hosts(program, home)
        try:
            borrowed(hosts)
            sessions(hosts)
            borrowed(hosts)
        finally:
            hosts.end()


main()
