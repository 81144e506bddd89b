#!/usr/bin/env python3
"""Installs each package of a release in an empty place, uses it there and removes it without a trace.

    python3 tests/packages.py FOLDER      # what packaging/release VERSION has made

Exit status 0 where everything is as it should be. Debian's package is installed below a root of its
own where this is run by root, and only unpacked where not.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = json.loads((ROOT / "packaging" / "names.json").read_text())
#: The environment without this checkout's program.
CLEAN = {key: value for key, value in os.environ.items() if key != "CODE_MODE_BIN"}


def run(*command, cwd=None, env=None, status=0, **options):
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env or CLEAN, capture_output=True, text=True, timeout=300, **options)
    if done.returncode != status:
        sys.exit(f"packages: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def example(readme, language):
    """The first example of a README in a language."""
    return re.search(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(), re.S).group(1)


def well(program, env=None):
    """The program knows its version, and its sandbox is whole."""
    version = run(program, "--version", env=env).split()[1]
    if "All is well" not in run(program, "doctor", env=env):
        sys.exit(f"packages: {program} doctor")
    return version


def check(expected, found, what):
    if expected != found:
        sys.exit(f"packages: {what}: {found!r} instead of {expected!r}")


def tarball(folder, place):
    (path,) = folder.glob(f"{NAMES['program']}-*-linux-gnu.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(place, filter="data")
    (top,) = place.iterdir()
    version = well(top / "bin" / NAMES["program"])
    for name in ["LICENSE", "THIRD-PARTY-LICENSES.txt", "components.cdx.json", "share/man/man1/code-mode-run.1", "share/zsh/site-functions/_code-mode"]:
        check(True, (top / name).stat().st_size > 100, name)
    components = json.loads((top / "components.cdx.json").read_text())
    check("CycloneDX", components["bomFormat"], "components")
    check(True, any(part["name"] == "v8" for part in components["components"]), "v8 is a component")
    return version


def npm(folder, place):
    (place / "package.json").write_text('{"private": true, "type": "module"}')
    packages = sorted(folder.glob("*.tgz"))
    start = time.monotonic()
    run("npm", "install", "--silent", "--no-audit", "--no-fund", "--offline", *packages, cwd=place)
    (place / "first.ts").write_text(example("sdk/typescript/README.md", "ts"))
    # The example is also JavaScript.
    shutil.copy(place / "first.ts", place / "first.mjs")
    check("3\n", run("node", "first.mjs", cwd=place), "the first example of the TypeScript SDK")
    taken = time.monotonic() - start
    version = well(place / "node_modules" / ".bin" / "code-mode")
    # Exit statuses and signals pass through the launcher.
    (place / "exit.js").write_text("exit(7)")
    run("npx", "code-mode", "run", "exit.js", cwd=place, status=7)
    launched = subprocess.Popen(["node_modules/.bin/code-mode", "run", "-"], cwd=place, env=CLEAN, stdin=subprocess.PIPE)
    launched.stdin.write(b"notify('up'); for (;;);")
    launched.stdin.close()
    time.sleep(1)
    launched.terminate()
    check(143, launched.wait(30), "the status of a launcher that was terminated")
    run("npm", "uninstall", "--silent", *[package.name.rsplit("-", 1)[0] for package in packages], cwd=place)
    # npm keeps this list.
    kept = [place / "node_modules" / ".package-lock.json"]
    left = [str(path) for path in place.glob("node_modules/**/*") if not path.is_dir() and path not in kept]
    check([], left, "what npm uninstall leaves")
    print(f"npm: from an empty folder to the first output: {taken:.1f} s, {len(example('sdk/typescript/README.md', 'ts').splitlines())} lines")
    return version


def pip(folder, place):
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        check(None, archive.testzip(), "the wheel")
    run(sys.executable, "-m", "venv", place / "venv")
    python = place / "venv" / "bin" / "python"
    before = sorted(path for path in (place / "venv").rglob("*") if "__pycache__" not in path.parts)
    start = time.monotonic()
    run(python, "-m", "pip", "install", "-q", "--no-index", wheel)
    (place / "first.py").write_text(example("sdk/python/README.md", "python"))
    check("3\n", run(python, "-B", "first.py", cwd=place), "the first example of the Python SDK")
    taken = time.monotonic() - start
    version = well(place / "venv" / "bin" / NAMES["program"])
    run(python, "-m", "pip", "check")
    run(python, "-m", "pip", "uninstall", "-q", "-y", NAMES["pypi"])
    after = sorted(path for path in (place / "venv").rglob("*") if "__pycache__" not in path.parts)
    check([], [str(path) for path in after if path not in before], "what pip uninstall leaves")
    # The source distribution has no program, and says so where it is used.
    (source,) = folder.glob(f"{NAMES['pypi'].replace('-', '_')}-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(place / "source", filter="data")
    (top,) = (place / "source").iterdir()
    env = {**CLEAN, "PYTHONPATH": str(top / "src"), "PATH": "/nowhere"}
    done = subprocess.run([python, "-c", "import code_mode; code_mode.find_program()"], env=env, capture_output=True, text=True)
    check(True, "was not found: CODE_MODE_BIN is not set; not beside this package" in done.stderr, "what the source distribution says")
    print(f"pip: from an empty folder to the first output: {taken:.1f} s, {len(example('sdk/python/README.md', 'python').splitlines())} lines")
    return version


def debian(folder, place):
    (package,) = folder.glob("*.deb")
    root = place / "root"
    if os.geteuid() == 0 and shutil.which("dpkg"):
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        (root / "var/lib/dpkg/updates").mkdir()
        (root / "var/lib/dpkg/status").touch()
        # Its scripts are for a machine with systemd and AppArmor; in an empty root there is not even a shell.
        dpkg = ["dpkg", f"--root={root}", "--force-script-chrootless", "--force-not-root"]
        run(*dpkg, "--install", package)
        version = well(root / "usr" / "bin" / NAMES["program"])
        for script in ["postinst", "prerm", "postrm"]:
            run("sh", "-n", root / f"var/lib/dpkg/info/code-mode.{script}")
    else:
        run("dpkg-deb", "--extract", package, root)
        version = well(root / "usr" / "bin" / NAMES["program"])
    unit = (root / "usr/lib/systemd/system/code-mode.service").read_text()
    check(True, "Type=notify" in unit, "the unit")
    if shutil.which("systemd-analyze"):
        # With the paths of this root, and the units of this machine around it.
        own = place / "code-mode.service"
        own.write_text(unit.replace("/usr/bin", f"{root}/usr/bin").replace("/etc/default", f"{root}/etc/default"))
        run("systemd-analyze", "verify", "--man=no", own)
    options = re.search(r'CODE_MODE_OPTIONS="(.*)"', (root / "etc/default/code-mode").read_text()).group(1)
    serves(root / "usr" / "bin" / NAMES["program"], options.replace(":9000", ":0").replace(":9001", ":0").split())
    if os.geteuid() == 0 and shutil.which("dpkg"):
        run(*dpkg, "--purge", "code-mode")
        left = [str(path) for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / "var/lib/dpkg")]
        check([], left, "what dpkg --purge leaves")
    return version


def serves(program, options):
    """The service says to systemd that it is ready, and that it stops; SIGTERM ends it in order."""
    import socket

    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        path = os.path.join(folder, "notify")
        told.bind(path)
        told.settimeout(30)
        service = subprocess.Popen([program, "serve", *options], env={**CLEAN, "NOTIFY_SOCKET": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        check(b"READY=1", told.recv(100).strip(), "what systemd is told at the start")
        service.terminate()
        check(b"STOPPING=1", told.recv(100).strip(), "what systemd is told at the end")
        check(0, service.wait(60), "the status of the service")


def image(folder, place):
    (path,) = folder.glob("*-image.tar")
    with tarfile.open(path) as archive:
        archive.extractall(place / "image", filter="data")
    (manifest,) = json.loads((place / "image" / "manifest.json").read_text())
    root = place / "root"
    for layer in manifest["Layers"]:
        with tarfile.open(place / "image" / layer) as archive:
            archive.extractall(root, filter="fully_trusted")
    program = next(path for path in root.rglob(NAMES["program"]) if path.is_file())
    return well(program)


def main(folder):
    sums = (folder / "SHA256SUMS").read_text() if (folder / "SHA256SUMS").exists() else ""
    if sums:
        run("sha256sum", "--quiet", "-c", "SHA256SUMS", cwd=folder)
    versions = {}
    for wrapping in [tarball, npm, pip, debian, image]:
        with tempfile.TemporaryDirectory() as place:
            versions[wrapping.__name__] = wrapping(folder, Path(place))
        print(f"{wrapping.__name__}: version {versions[wrapping.__name__]}, installed, used and removed", flush=True)
    if len(set(versions.values())) != 1:
        sys.exit(f"packages: {versions}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
