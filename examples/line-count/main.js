// Counts lines by kind of file, reading many files at the same time.
const paths = (await tools.list())
  .split("\n")
  .filter((path) => /\.(rs|js|toml|md|py|sh)$/.test(path));

const totals = new Map();
const failed = [];
// All reads are started at once; each is counted when it is done.
const reads = new Map(paths.map((path) => [path, tools.read({ path })]));
await stream_settled(reads, ({ index: path, status, value, reason }) => {
  if (status === "rejected") return void failed.push(`${path}: ${reason}`);
  const ending = path.slice(path.lastIndexOf("."));
  const total = totals.get(ending) ?? { files: 0, lines: 0 };
  total.files++;
  total.lines += value.split("\n").length - 1;
  totals.set(ending, total);
});

for (const [ending, { files, lines }] of [...totals].sort((a, b) => b[1].lines - a[1].lines)) {
  text(`${ending.padEnd(6)} ${String(files).padStart(5)} files, ${String(lines).padStart(8)} lines`);
}
for (const line of failed) text(line);
