#!/usr/bin/env bash
# Builds the archive in this folder anew, for another version of the crate `v8`:
#   third_party/v8/rebuild.sh WORKDIR
# It takes more than an hour on two cores, and 12 GB of disk. The machine must have patch, and what V8's own build
# asks for and the crate does not carry: gn and ninja (GN, NINJA), clang 21 or newer with its runtime library
# (CLANG_BASE_PATH), and bindgen that fits it. The versions are those that code-mode/Cargo.toml names.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mkdir -p "${1:?usage: rebuild.sh WORKDIR}" && cd "$1" && pwd)
: "${GN:?set GN to the program gn}" "${NINJA:?set NINJA to the program ninja}"
: "${CLANG_BASE_PATH:?set CLANG_BASE_PATH to the folder of clang}"

v8=$(sed -n 's/^v8 = "=\(.*\)"$/\1/p' "$here/../../code-mode/Cargo.toml" | head -1)
target=x86_64-unknown-linux-gnu
name=ptrcomp_sandbox_release_$target

# The sources, as the registry has them.
mkdir -p "$work/fetch/src"
: > "$work/fetch/src/lib.rs"
printf '[package]\nname = "fetch"\nedition = "2024"\n[dependencies]\nv8 = "=%s"\n' "$v8" > "$work/fetch/Cargo.toml"
cargo fetch --manifest-path "$work/fetch/Cargo.toml"
source=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/v8-"$v8")
rm -rf "$work/v8"
cp -r "$source" "$work/v8"
patch --directory="$work/v8" --strip=1 --fuzz=0 < "$here/lean-isolates.patch"

cd "$work/v8"
V8_FROM_SOURCE=1 cargo build --release --target "$target" --features v8_enable_sandbox
built=$work/v8/target/$target/release/gn_out
strip --strip-debug "$built/obj/librusty_v8.a"

# The program brings ICU's data itself (the crate deno_core_icudata): an empty object takes its place.
printf '.section .rodata\n.globl icudt78_dat\nicudt78_dat: .fill 16\n' | "$CLANG_BASE_PATH/bin/clang" -c -x assembler - -o "$work/icudata.o"
for member in $(ar t "$built/obj/librusty_v8.a" | grep -i icudata || true); do
    ar d "$built/obj/librusty_v8.a" "$member"
done
ar r "$built/obj/librusty_v8.a" "$work/icudata.o"

gzip -9 -n -c "$built/obj/librusty_v8.a" > "$here/librusty_v8_$name.a.gz"
cp "$built/src_binding.rs" "$here/src_binding_$name.rs"

# The bindings, as the crate has them.
find "$here/src" -name '*.rs' -delete
(cd "$source/src" && find . -name '*.rs' -exec install -Dm644 {} "$here/src/{}" \;)
sed -i "s/^version = .*/version = \"$v8\"/" "$here/Cargo.toml"

(cd "$here" && sha256sum librusty_v8_* src_binding_* lean-isolates.patch $(find src -name '*.rs' | LC_ALL=C sort) > SHA256SUMS)
echo "Now: cargo test --workspace, then tests/start_functions.py make."
