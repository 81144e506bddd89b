// What changed since the last run: keeps the fingerprint of every file with
// `store` and compares. Run it with --store FILE, twice.
const now = Object.fromEntries(
  (await tools.fingerprints())
    .split("\n")
    .filter(Boolean)
    .map((line) => {
      const [meta, path] = line.split("\t");
      return [path, meta.split(" ")[1]];
    }),
);
const before = load("fingerprints");
store("fingerprints", now);

if (before === undefined) {
  text(`first run: ${Object.keys(now).length} files remembered`);
  exit();
}
const added = Object.keys(now).filter((path) => !(path in before));
const removed = Object.keys(before).filter((path) => !(path in now));
const changed = Object.keys(now).filter((path) => path in before && before[path] !== now[path]);
for (const path of added) text(`added    ${path}`);
for (const path of removed) text(`removed  ${path}`);
for (const path of changed) text(`changed  ${path}`);
if (added.length + removed.length + changed.length === 0) text("nothing changed");
