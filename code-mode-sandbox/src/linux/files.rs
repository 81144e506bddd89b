//! No file system, no network.

use std::ffi::CStr;

use code_mode_protocol::SandboxLayer;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::{holds, missing};

/// Folders one of which exists on any system; an empty file system is mounted
/// over it to become the root.
const FOLDERS: [&CStr; 4] = [c"/tmp", c"/proc", c"/dev", c"/sys"];

/// Leaves the process with an empty, read-only root; the old one is out of reach.
/// Only possible in a private mount namespace.
pub(super) fn empty_root(in_namespaces: bool) -> SandboxLayer {
    let name = "empty root";
    if !in_namespaces {
        return missing(name, "needs a private mount namespace");
    }
    match change_root() {
        Ok(()) => holds(name, "an empty, read-only file system is all it can name"),
        Err(error) => missing(name, error.to_string()),
    }
}

fn change_root() -> rustix::io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut mounted = Err(rustix::io::Errno::NOENT);
    for folder in FOLDERS {
        mounted = rustix::mount::mount("none", folder, "tmpfs", flags, c"size=4k,nr_inodes=2")
            .and_then(|()| rustix::process::chdir(folder));
        if mounted.is_ok() {
            break;
        }
    }
    mounted?;
    // The new root over the old, which is then at the same place below it.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Denies the file system, TCP, abstract sockets and signals to others, as far as
/// the running kernel's Landlock goes.
pub(super) fn landlock() -> SandboxLayer {
    let name = "landlock";
    let newest = ABI::V6;
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(newest)))
        .and_then(|rules| rules.scope(Scope::from_all(newest)))
        .and_then(landlock::Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    match restricted {
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => holds(
                name,
                "no files, no TCP, no abstract sockets, no signals to outside",
            ),
            RulesetStatus::PartiallyEnforced => holds(
                name,
                "partly: this kernel's Landlock does not know all of it",
            ),
            RulesetStatus::NotEnforced => missing(name, "this kernel has none, or it is off"),
        },
        Err(error) => missing(name, error.to_string()),
    }
}
