"""Runs the web platform tests' data for URL, encoding labels and base64 in a cell.

    python3 tests/wpt.py CHECKOUT [PROGRAM]

Every entry of the data is one check in a program for `PROGRAM run` (target/release/code-mode).
Which fail, and why, stands in tests/fixtures/wpt_expected.txt. Exit status 1: another check
failed, or one in the list passed and should leave it.
"""
import json
import os
import subprocess
import sys

EXPECTED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "wpt_expected.txt")

CHECKS = r"""
const failed = []; let checks = 0;
const check = (name, run) => {
  checks++;
  try { const wrong = run(); if (wrong) failed.push([name, wrong]); }
  catch (error) { failed.push([name, String(error)]); }
};
const differs = (found, wanted) => {
  for (const [key, value] of Object.entries(wanted)) {
    if (found[key] !== value) return `${key} is ${JSON.stringify(found[key])} instead of ${JSON.stringify(value)}`;
  }
};
const parts = ['href', 'origin', 'protocol', 'username', 'password', 'host', 'hostname', 'port', 'pathname', 'search', 'hash'];
const of = (test) => Object.fromEntries(parts.filter((part) => part in test).map((part) => [part, test[part]]));
for (const test of data.urls) {
  if (typeof test === 'string') continue;
  const base = test.base ?? undefined;
  check(`url ${JSON.stringify(test.input)} against ${JSON.stringify(base)}`, () => {
    if (!test.failure) return differs(new URL(test.input, base), of(test));
    if (URL.canParse(test.input, base)) return 'it parses';
  });
}
for (const [part, tests] of Object.entries(data.setters)) {
  if (part === 'comment') continue;
  for (const test of tests) {
    check(`set ${part} of ${JSON.stringify(test.href)} to ${JSON.stringify(test.new_value)}`, () => {
      const url = new URL(test.href);
      url[part] = test.new_value;
      return differs(url, test.expected);
    });
  }
}
for (const test of data.hosts) {
  if (typeof test === 'string') continue;
  check(`host ${JSON.stringify(test.input)}`, () => {
    const url = `https://${test.input}/x`;
    if (test.output === null) return URL.canParse(url) ? 'it parses' : undefined;
    return differs(new URL(url), { host: test.output, href: `https://${test.output}/x` });
  });
}
for (const { encodings } of data.encodings) for (const { name, labels } of encodings) for (const label of labels) {
  for (const written of [label, label.toUpperCase(), ` \t\n\f\r${label}\r\f\n\t `]) {
    check(`label ${JSON.stringify(written)}`, () => {
      if (name !== 'replacement') return differs(new TextDecoder(written), { encoding: name });
      try { new TextDecoder(written); return 'it is taken'; } catch (error) { return differs(error, { name: 'RangeError' }); }
    });
  }
}
for (const [input, bytes] of data.base64) {
  check(`base64 ${JSON.stringify(input)}`, () => {
    let found;
    try { found = [...atob(input)].map((unit) => unit.charCodeAt(0)); }
    catch (error) { return bytes === null ? differs(error, { name: 'InvalidCharacterError' }) : String(error); }
    if (JSON.stringify(found) !== JSON.stringify(bytes)) return `it is ${JSON.stringify(found)}`;
    if (btoa(atob(input)) !== btoa(String.fromCharCode(...bytes))) return 'btoa does not give it back';
  });
}
text(JSON.stringify({ checks, failed }));
"""


def main():
    checkout = sys.argv[1]
    program = sys.argv[2] if len(sys.argv) > 2 else "target/release/code-mode"

    def read(path):
        with open(os.path.join(checkout, path), encoding="utf-8") as file:
            return file.read()

    encodings = read("encoding/resources/encodings.js").split("encodings_table =")[1].strip().rstrip(";")
    data = {
        "urls": json.loads(read("url/resources/urltestdata.json")),
        "setters": json.loads(read("url/resources/setters_tests.json")),
        "hosts": json.loads(read("url/resources/toascii.json")),
        "encodings": json.loads(encodings),
        "base64": json.loads(read("fetch/data-urls/resources/base64.json")),
    }
    source = f"const data = {json.dumps(data)};\n{CHECKS}"
    done = subprocess.run([program, "run", "-"], input=source.encode(), stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    with open(EXPECTED, encoding="utf-8") as file:
        expected = {line.rstrip("\n") for line in file if not line.startswith("#")} - {""}
    failed = dict(result["failed"])
    unexplained = sorted(failed.keys() - expected)
    for name in unexplained:
        print(f"FAIL {name}: {failed[name]}")
    gone = sorted(expected - failed.keys())
    for name in gone:
        print(f"PASSES NOW {name}: take it off the list")
    print(f"{result['checks']} checks, {len(failed)} failed, {len(unexplained)} of them not explained")
    sys.exit(bool(unexplained or gone))


main()
