#!/usr/bin/env bash
# The client that the official MCP conformance suite starts: every tool of the server at the
# address that comes last, called from one cell.
#
#   npx -p @modelcontextprotocol/conformance conformance client \
#     --command tests/mcp_conformance_client.sh --scenario tools_call
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
printf '{"mcpServers":{"c":{"url":"%s"}}}' "${@: -1}" > "$folder/servers.json"
cat > "$folder/cell.js" <<'CELL'
const inputs = { add_numbers: { a: 5, b: 3 }, valid_tool: { region: 'eu' } };
for (const { name } of ALL_TOOLS) {
  const input = inputs[name.replace('c__', '')] ?? {};
  try { text(await tools[name](input)); } catch (error) { text(`${name}: ${error.message}`); }
}
CELL
timeout 25 "${CODE_MODE:-target/release/code-mode}" run --mcp-config "$folder/servers.json" "$folder/cell.js"
