#!/usr/bin/env python3
"""Logins of `code-mode mcp` at an authorization server that others wrote: npm's `oidc-provider`.

    python3 tests/mcp_oauth.py PROGRAM

Installs it, logs in as a person with a browser does, and looks at a call, at the renewal of a token
that ends while twenty calls run (one renewal), at a stolen `state`, at a redirect to somebody else,
and at a login that was taken back. Exit status 0 where everything is as it should be.
"""
import html
import http.cookiejar
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "oauth"
VERSION = "8.8.1"


def check(condition, what):
    if not condition:
        sys.exit(f"mcp_oauth: {what}")
    print(f"ok: {what[:100]}", flush=True)


class Browser:
    """A person's browser: cookies, redirects, and forms with the person's name in them."""

    def __init__(self):
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def get(self, address, form=None):
        data = None if form is None else urllib.parse.urlencode(form).encode()
        try:
            with self.opener.open(address, data, timeout=20) as page:
                return page.status, page.url, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, address, error.read().decode()

    def log_in(self, address):
        """Fills in every form until the server sends the browser away; the last page."""
        status, url, page = self.get(address)
        for _ in range(4):
            action = re.search(r'<form[^>]*action="([^"]+)"', page)
            if status != 200 or not action:
                break
            fields = dict(re.findall(r'name="(\w+)"[^>]*value="([^"]*)"', page))
            fields |= {"login": "ann", "password": "x"} if 'name="login"' in page else {}
            status, url, page = self.get(urllib.parse.urljoin(url, html.unescape(action.group(1))), fields)
        return status, url, page


class World:
    def __init__(self, program, folder):
        self.program, self.folder = program, Path(folder)
        script = ROOT / "tests" / "fixtures" / "oidc_server.mjs"
        self.server = subprocess.Popen(["node", script, HOME], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.base = f"http://127.0.0.1:{self.server.stdout.readline().strip()}"
        self.config = self.folder / "servers.json"
        self.config.write_text(json.dumps({"mcpServers": {"oidc": {"url": f"{self.base}/mcp"}}}))
        self.env = {**os.environ, "XDG_STATE_HOME": folder, "XDG_CACHE_HOME": folder, "XDG_RUNTIME_DIR": folder}

    def begin(self):
        """A login that waits for its page, and the page's address."""
        command = [self.program, "mcp", "login", "--config", self.config, "oidc", "--no-browser"]
        login = subprocess.Popen(command, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in login.stderr:
            if line.strip().startswith("http"):
                return login, line.strip()
        sys.exit("mcp_oauth: the login shows no page")

    def run(self, script):
        command = [self.program, "run", "--mcp-config", self.config, "-"]
        done = subprocess.run(command, env=self.env, input=script, capture_output=True, text=True, timeout=120)
        return done.stdout.strip(), done.stderr

    def control(self, what):
        return json.loads(Browser().get(f"{self.base}/control?{what}")[2])


def main(program):
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", f"oidc-provider@{VERSION}"], cwd=HOME, check=True)
    with tempfile.TemporaryDirectory() as folder:
        world = World(os.path.abspath(program), folder)
        try:
            scenario(world)
        finally:
            world.server.kill()
            world.server.wait()


def scenario(world):
    said = world.run("text(await tools.oidc__who({}))")
    check("code-mode mcp login oidc" in said[1], f"a server that wants a login names the command: {said}")

    login, page = world.begin()
    asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(page).query))
    check(asked["code_challenge_method"] == "S256" and asked["resource"] == f"{world.base}/mcp", "the page's address has PKCE and the resource")
    # A redirect to somebody else: the authorization server knows one address.
    elsewhere = page.replace(urllib.parse.quote(asked["redirect_uri"], safe=""), urllib.parse.quote("http://127.0.0.1:1/evil", safe=""))
    status, _, _ = Browser().get(elsewhere)
    check(elsewhere != page and status == 400, "a redirect to somebody else is refused")
    # A stolen state: a code of another login does not end this one.
    status, _, body = Browser().get(f"{asked['redirect_uri']}?code=stolen&state=guessed")
    check(login.poll() is None and status != 200, f"a callback with another state ends nothing: {status} {body[:60]}")
    status, url, body = Browser().log_in(page)
    check(status == 200 and url.startswith(asked["redirect_uri"].split("?")[0]), f"the browser ends at the login's page: {status} {url} {body[:200]}")
    check(login.wait(30) == 0, f"the login has ended well: {login.stderr.read()}")

    check(world.run("text(await tools.oidc__who({}))")[0] == "ann", "a call has the person's token")
    check(world.control("grants")["refreshes"] == 0, "a good token is not renewed")
    script = """
        const one = () => tools.oidc__who({});
        await one();
        await new Promise((r) => setTimeout(r, 5000));
        const all = await Promise.all(Array.from({ length: 20 }, one));
        text(all.every((name) => name === "ann") ? all.length : all);
    """
    before = world.control("grants")["refreshes"]
    said = world.run(script)
    check(said[0] == "20", f"twenty calls at the end of a token all run: {said}")
    renewals = world.control("grants")["refreshes"] - before
    check(1 <= renewals <= 3, f"a token is renewed once for all of them: {renewals} renewals, at the start, at half of its life, and at its end")

    world.control("revoke=1")
    said = world.run("try { await tools.oidc__who({}) } catch (e) { text(e.message) }")
    check("code-mode mcp login oidc" in said[0] + said[1], f"a login that was taken back names the command: {said}")
    logged_out = subprocess.run([world.program, "mcp", "logout", "--config", world.config, "oidc"], env=world.env, capture_output=True, text=True)
    check(logged_out.returncode == 0, f"a logout forgets it: {logged_out.stderr}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
