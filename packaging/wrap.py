"""The program in its wrappings. The same commit gives the same bytes: names are sorted, times are those
of the commit, owners are root."""
import base64
import functools
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = json.loads((Path(__file__).resolve().parent / "names.json").read_text())


def run(*command, cwd=ROOT, **options):
    return subprocess.run([str(part) for part in command], cwd=cwd, check=True, text=True, **options)


def this_platform():
    """The entry of `names.json` for this machine."""
    cpu = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), platform.machine())
    for entry in NAMES["platforms"]:
        if (entry["npm"]["os"], entry["npm"]["cpu"]) == (sys.platform, cpu):
            return entry
    sys.exit(f"release: packaging/names.json has no entry for {sys.platform} on {cpu}")


def npm_platform(entry):
    """The npm package with the program for a platform."""
    return f"{NAMES['npm']}-{entry['npm']['suffix']}"


class Release:
    def __init__(self, version, program, out):
        self.version, self.out = version, out
        self.platform = this_platform()
        self.time = int(run("git", "log", "-1", "--format=%ct", capture_output=True).stdout)
        out.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp())
        self.program = self.work / NAMES["program"]
        run("strip", "-o", self.program, program)
        self.program.chmod(0o755)

    def make(self):
        try:
            run(self.program, "generate", self.work / "generated")
            self.parts = component_list(self.version)
            self.licences = licences()
            self.tarball()
            self.npm()
            self.wheel()
            self.sdist()
            if "debian" in self.platform:
                self.debian()
                self.image()
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    # What every wrapping has.

    def documents(self):
        yield "LICENSE", (ROOT / "LICENSE").read_bytes()
        yield "THIRD-PARTY-LICENSES.txt", self.licences

    def generated(self):
        """Man pages and completions, with their paths below a `share` folder."""
        made = self.work / "generated"
        places = {"code-mode.bash": "bash-completion/completions/code-mode", "_code-mode": "zsh/site-functions/_code-mode",
                  "code-mode.fish": "fish/vendor_completions.d/code-mode.fish", "_code-mode.ps1": "code-mode/code-mode.ps1"}
        for page in sorted((made / "man").iterdir()):
            yield f"man/man1/{page.name}", page.read_bytes()
        for name, place in places.items():
            yield place, (made / "completions" / name).read_bytes()

    def archive(self, path, files):
        """A .tar.gz of (name, bytes, mode)."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content, mode in sorted(files):
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = len(content), mode, self.time
                tar.addfile(info, io.BytesIO(content))
        with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            packed.write(data.getvalue())

    # The wrappings.

    def tarball(self):
        name = f"{NAMES['program']}-{self.version}-{self.platform['target']}"
        files = [(f"{name}/bin/{NAMES['program']}", self.program.read_bytes(), 0o755)]
        files += [(f"{name}/share/{place}", data, 0o644) for place, data in self.generated()]
        files += [(f"{name}/{document}", data, 0o644) for document, data in self.documents()]
        files.append((f"{name}/components.cdx.json", self.parts, 0o644))
        self.archive(self.out / f"{name}.tar.gz", files)
        (self.out / f"{NAMES['program']}-{self.version}.cdx.json").write_bytes(self.parts)

    def npm(self):
        of = self.platform["npm"]
        name = npm_platform(self.platform)
        package = {"name": name, "version": self.version, "description": f"The program of the package {NAMES['npm']}, for {of['os']} on {of['cpu']}",
                   "license": "Apache-2.0", "os": [of["os"]], "cpu": [of["cpu"]], "files": ["bin"], "preferUnplugged": True, **repository()}
        files = [("package/package.json", encoded(package), 0o644),
                 (f"package/bin/{NAMES['program']}", self.program.read_bytes(), 0o755)]
        files += [(f"package/{document}", data, 0o644) for document, data in self.documents()]
        self.archive(self.out / f"{name}-{self.version}.tgz", files)

        sdk = ROOT / "sdk" / "typescript"
        run("npm", "ci", "--silent", cwd=sdk)
        shutil.rmtree(sdk / "dist", ignore_errors=True)
        run("npx", "tsc", "-p", ".", cwd=sdk)
        package = json.loads((sdk / "package.json").read_text())
        del package["devDependencies"], package["scripts"]
        package |= repository()
        package["optionalDependencies"] = {npm_platform(entry): self.version for entry in NAMES["platforms"]}
        files = [("package/package.json", encoded(package), 0o644), ("package/LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644),
                 ("package/README.md", (sdk / "README.md").read_bytes(), 0o644)]
        for folder, mode in [("bin", 0o755), ("dist", 0o644)]:
            for path in (sdk / folder).rglob("*"):
                if path.is_file():
                    files.append((f"package/{path.relative_to(sdk).as_posix()}", path.read_bytes(), mode))
        self.archive(self.out / f"{NAMES['npm']}-{self.version}.tgz", files)

    def metadata(self):
        readme = (ROOT / "sdk" / "python" / "README.md").read_text()
        project = tomllib.loads((ROOT / "sdk" / "python" / "pyproject.toml").read_text())["project"]
        lines = ["Metadata-Version: 2.4", f"Name: {NAMES['pypi']}", f"Version: {self.version}", f"Summary: {project['description']}",
                 "License-Expression: Apache-2.0", "License-File: LICENSE", "License-File: THIRD-PARTY-LICENSES.txt",
                 "Requires-Python: >=3.10", "Description-Content-Type: text/markdown"]
        for extra, packages in project["optional-dependencies"].items():
            lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {package}; extra == '{extra}'" for package in packages)]
        return ("\n".join(lines) + "\n\n" + readme).encode()

    def wheel(self):
        distribution = f"{NAMES['pypi'].replace('-', '_')}-{self.version}"
        info, tag = f"{distribution}.dist-info", f"py3-none-{self.platform['wheel']}"
        tags = "".join(f"Tag: py3-none-{platform}\n" for platform in self.platform["wheel"].split("."))
        files = [(f"{info}/METADATA", self.metadata(), 0o644),
                 (f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: code-mode\nRoot-Is-Purelib: false\n{tags}".encode(), 0o644),
                 (f"{distribution}.data/scripts/{NAMES['program']}", self.program.read_bytes(), 0o755)]
        files += [(f"{info}/licenses/{document}", data, 0o644) for document, data in self.documents()]
        files.append((f"{info}/sboms/{NAMES['program']}.cdx.json", self.parts, 0o644))
        source = ROOT / "sdk" / "python" / "src"
        files += [(path.relative_to(source).as_posix(), path.read_bytes(), 0o644) for path in python_files(source)]
        record = []
        for name, data, _ in sorted(files):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
        record.append(f"{info}/RECORD,,")
        # The list of files stands last.
        listed = [*sorted(files), (f"{info}/RECORD", ("\n".join(record) + "\n").encode(), 0o644)]
        with zipfile.ZipFile(self.out / f"{distribution}-{tag}.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
            for name, data, mode in listed:
                entry = zipfile.ZipInfo(name, time.gmtime(self.time)[:6])
                entry.external_attr, entry.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
                wheel.writestr(entry, data)

    def sdist(self):
        name = f"{NAMES['pypi'].replace('-', '_')}-{self.version}"
        source = ROOT / "sdk" / "python"
        files = [(f"{name}/PKG-INFO", self.metadata(), 0o644), (f"{name}/LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644)]
        for path in [source / "pyproject.toml", source / "README.md", *python_files(source / "src")]:
            files.append((f"{name}/{path.relative_to(source).as_posix()}", path.read_bytes(), 0o644))
        self.archive(self.out / f"{name}.tar.gz", files)

    def debian(self):
        place = self.work / "debian"
        own = ROOT / "packaging" / "debian"
        def put(path, data, mode=0o644):
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(mode)
        put(f"usr/bin/{NAMES['program']}", self.program.read_bytes(), 0o755)
        put("usr/lib/systemd/system/code-mode.service", (own / "code-mode.service").read_bytes())
        put("etc/default/code-mode", (own / "default").read_bytes())
        put("etc/apparmor.d/code-mode", (ROOT / "docs" / "apparmor-profile").read_bytes())
        for share, data in self.generated():
            zipped = share.startswith("man/")
            put(f"usr/share/{share}{'.gz' if zipped else ''}", gzip.compress(data, 9, mtime=0) if zipped else data)
        put("usr/share/doc/code-mode/copyright", b"".join(data for _, data in self.documents()))
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) // 1024
        control = (own / "control").read_text().format(version=self.version, architecture=self.platform["debian"], size=size)
        put("DEBIAN/control", control.encode())
        put("DEBIAN/conffiles", b"/etc/apparmor.d/code-mode\n/etc/default/code-mode\n")
        for script in ["postinst", "prerm", "postrm"]:
            put(f"DEBIAN/{script}", (own / script).read_bytes(), 0o755)
        for path in [place, *place.rglob("*")]:
            os.utime(path, (self.time, self.time))
            if path.is_dir():
                path.chmod(0o755)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(self.time)}
        package = self.out / f"{NAMES['debian']}_{self.version}_{self.platform['debian']}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", place, package, env=environment, stdout=subprocess.DEVNULL)

    def image(self):
        path = self.out / f"{NAMES['image']}-{self.version}-image.tar"
        run(sys.executable, "examples/deploy/image.py", self.program, path, stdout=subprocess.DEVNULL)


def repository():
    """What npm asks for where a package's provenance is published."""
    address = NAMES["repository"]
    return {"repository": {"type": "git", "url": f"git+{address}.git"}} if address else {}


def encoded(value):
    return (json.dumps(value, indent=2) + "\n").encode()


def python_files(source):
    found = (path for path in source.rglob("*") if path.suffix == ".py" or path.name == "py.typed")
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


@functools.cache
def crates():
    """The crates that the program is made of, in order."""
    target = this_platform()["target"]
    data = json.loads(run("cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target, capture_output=True).stdout)
    listed = run("cargo", "tree", "-p", "code-mode-bin", "-e", "normal", "--target", target, "--prefix", "none", "--format", "{p}", "--locked", capture_output=True).stdout
    wanted = {tuple(line.split()[:2]) for line in listed.splitlines() if line.strip()}
    found = [crate for crate in data["packages"] if (crate["name"], f"v{crate['version']}") in wanted]
    return sorted(found, key=lambda crate: (crate["name"], crate["version"]))


def crates_of_others():
    """Those of `crates` that others wrote, each with the name that they gave it."""
    for crate in crates():
        vendored = ROOT / "third_party" in Path(crate["manifest_path"]).parents
        if crate["source"] is not None or vendored:
            # A vendored crate has the name of this project and then its own.
            yield crate["name"].removeprefix("code-mode-") if vendored else crate["name"], crate


def component_list(version):
    """The components of the program, in CycloneDX."""
    parts = []
    for name, crate in crates_of_others():
        part = {"type": "library", "name": name, "version": crate["version"], "purl": f"pkg:cargo/{name}@{crate['version']}"}
        if crate["license"]:
            part["licenses"] = [{"expression": crate["license"].replace("/", " OR ")}]
        parts.append({**part, "bom-ref": part["purl"]})
    own = {"type": "application", "name": NAMES["program"], "version": version, "bom-ref": NAMES["program"]}
    # V8's own version is in its crate's.
    return encoded({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": own}, "components": parts})


def licences():
    """The licences of all crates: each text once, with the names of those that have it."""
    texts = {}
    for name, crate in crates_of_others():
        folder = Path(crate["manifest_path"]).parent
        names = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))]
        for path in names:
            text = path.read_text(errors="replace").strip()
            texts.setdefault(text, []).append(f"{name} {crate['version']}")
        if not names:
            texts.setdefault(f"(no text in the crate; its licence is {crate['license']})", []).append(f"{name} {crate['version']}")
    parts = []
    for text, owners in sorted(texts.items(), key=lambda item: item[1]):
        parts.append("=" * 80 + "\n" + ", ".join(owners) + "\n" + "=" * 80 + "\n\n" + text + "\n")
    return "\n".join(parts).encode()
