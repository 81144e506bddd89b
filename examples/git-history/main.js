// Who changed what: reads the last commits and reports authors and files.
const log = await tools.git__log({ count: 500 });

const authors = new Map();
const files = new Map();
let author;
for (const line of log.split("\n")) {
  if (line.startsWith("commit ")) {
    author = line.split("\t")[1];
    const seen = authors.get(author) ?? { commits: 0, added: 0, removed: 0 };
    seen.commits++;
    authors.set(author, seen);
  } else if (line.includes("\t")) {
    const [added, removed, path] = line.split("\t");
    // Binary files have `-` for both.
    const lines = [Number(added) || 0, Number(removed) || 0];
    authors.get(author).added += lines[0];
    authors.get(author).removed += lines[1];
    const file = files.get(path) ?? { changes: 0, lines: 0 };
    file.changes++;
    file.lines += lines[0] + lines[1];
    files.set(path, file);
  }
}

for (const [name, { commits, added, removed }] of [...authors].sort((a, b) => b[1].commits - a[1].commits)) {
  text(`${commits} commits by ${name}: +${added} -${removed} lines`);
}
text("\nmost changed files");
const most = [...files].sort((a, b) => b[1].changes - a[1].changes || b[1].lines - a[1].lines);
for (const [path, { changes, lines }] of most.slice(0, 10)) {
  text(`${String(changes).padStart(5)} changes ${String(lines).padStart(7)} lines  ${path}`);
}
