//! Where the gateways of a user are found.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::broker::Loaded;
use crate::config::{ServerConfig, Transport};
use crate::texts::hex;

/// The name of a gateway: a digest of all that it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayName(String);

/// The bytes of the digest that a name has.
const BYTES: usize = 16;

/// Variables that a terminal or an editor sets anew for each window, and on which no server depends.
const OF_WINDOWS: [&str; 2] = ["TERM", "SHELL"];

impl GatewayName {
    /// The name of the gateway that serves this configuration with these arguments. It depends on this
    /// program's file, on what servers get of the environment, and on the working folder where a server
    /// runs in it or one of `paths` is relative.
    ///
    /// # Errors
    /// What the system says where the program or the working folder is not there any more.
    pub fn of<'a>(
        loaded: &Loaded,
        arguments: impl Iterator<Item = &'a OsStr>,
        mut paths: impl Iterator<Item = &'a Path>,
    ) -> io::Result<Self> {
        let mut digest = Digests(Sha256::new());
        digest.add(env!("CARGO_PKG_VERSION").as_bytes());
        digest.add_file(&std::env::current_exe()?)?;
        arguments.for_each(|argument| digest.add(argument.as_encoded_bytes()));
        digest.add(format!("{:?}", loaded.servers).as_bytes());
        digest.add(format!("{:?}", loaded.policy).as_bytes());
        let runs_in_folder = |server: &ServerConfig| match &server.transport {
            Transport::Stdio { cwd, .. } => cwd.as_ref().is_none_or(|cwd| cwd.is_relative()),
            _ => false,
        };
        if loaded.servers.iter().any(runs_in_folder) || paths.any(Path::is_relative) {
            digest.add_file(&std::env::current_dir()?)?;
        }
        digest.add(&umask().to_le_bytes());
        for (name, value) in code_mode_system::inherited_with_network() {
            if !OF_WINDOWS.contains(&name) {
                digest.add(name.as_bytes());
                digest.add(value.as_encoded_bytes());
            }
        }
        let mut own: Vec<_> = std::env::vars_os().collect();
        own.retain(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("OTEL_") || name == "RUST_LOG"
        });
        own.sort();
        for (name, value) in own {
            digest.add(name.as_encoded_bytes());
            digest.add(value.as_encoded_bytes());
        }
        let digest = digest.0.finalize();
        Ok(Self(hex(digest.get(..BYTES).unwrap_or_default())))
    }
}

/// The permissions that files of this process do not get.
fn umask() -> u32 {
    // It can only be read by setting it. No other thread makes files yet.
    let mask = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    rustix::process::umask(mask);
    mask.bits()
}

/// A digest of strings, of which none can be taken for the end of another.
struct Digests(Sha256);

impl Digests {
    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Adds a path, and which file it stands for now.
    fn add_file(&mut self, path: &Path) -> io::Result<()> {
        let file = std::fs::metadata(path)?;
        self.add(path.as_os_str().as_encoded_bytes());
        self.add(&file.dev().to_le_bytes());
        self.add(&file.ino().to_le_bytes());
        if file.is_file() {
            self.add(&file.size().to_le_bytes());
            self.add(&file.mtime().to_le_bytes());
        }
        Ok(())
    }
}

impl FromStr for GatewayName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.len() == 2 * BYTES && text.bytes().all(is_digit) {
            true => Ok(Self(text.to_owned())),
            false => Err("not the name of a gateway"),
        }
    }
}

impl std::fmt::Display for GatewayName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder of a user's gateways. It is `code-mode` in `XDG_RUNTIME_DIR` or in `/run/user/UID`, or
/// `/tmp/code-mode-UID`: the first of them that can be made. Clients start their servers with more or
/// fewer variables, and must come to the same place.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

/// Why a user's gateways have no place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The folder cannot be made or looked at.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others could put a socket there.
    #[error("{} is not this user's alone", path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
    },
}

/// The longest path of the folder: with the name of a socket it is as long as may be.
const MAX_PATH: usize = 60;

/// What the names of sockets begin with.
const PREFIX: &str = "mcp-";

impl Place {
    /// The user's folder, which is made where it is not there.
    ///
    /// # Errors
    /// [`PlaceError`]: where a folder is there and is not private, no other is tried.
    pub fn of_user() -> Result<Self, PlaceError> {
        let user = rustix::process::geteuid().as_raw();
        let own = PathBuf::from(format!("/tmp/code-mode-{user}"));
        let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let named = named.filter(|folder| folder.is_absolute());
        let of_session = [named, Some(format!("/run/user/{user}").into())];
        for folder in of_session.into_iter().flatten() {
            // Where a user has become another, the variable still names the first one's folder.
            let is_own = std::fs::metadata(&folder).is_ok_and(|folder| folder.uid() == user);
            if !is_own {
                continue;
            }
            match Self::at(folder.join("code-mode"), user) {
                Err(PlaceError::Unusable { .. }) => {}
                other => return other,
            }
        }
        Self::at(own, user)
    }

    fn at(path: PathBuf, user: u32) -> Result<Self, PlaceError> {
        let unusable = |source| PlaceError::Unusable {
            path: path.clone(),
            source,
        };
        // The longest name that a socket may have is a little over a hundred bytes.
        if path.as_os_str().len() > MAX_PATH {
            return Err(unusable(io::ErrorKind::InvalidFilename.into()));
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(unusable(error));
            }
            _ => {}
        }
        let folder = std::fs::symlink_metadata(&path).map_err(unusable)?;
        let is_private = folder.is_dir() && folder.uid() == user && folder.mode() & 0o077 == 0;
        match is_private {
            true => Ok(Self(path)),
            false => Err(PlaceError::NotPrivate { path }),
        }
    }

    /// The gateways that have a socket there. One of them may have ended without removing it.
    pub fn gateways(&self) -> Vec<GatewayName> {
        let files = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<GatewayName> = files
            .filter_map(|file| {
                let name = file.file_name();
                let name = name.to_str()?.strip_prefix(PREFIX)?;
                name.strip_suffix(".sock")?.parse().ok()
            })
            .collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    }

    /// The socket of a gateway.
    pub fn socket(&self, name: &GatewayName) -> PathBuf {
        self.file(name, "sock")
    }

    /// The file that is locked by who starts a gateway.
    pub(super) fn lock(&self, name: &GatewayName) -> PathBuf {
        self.file(name, "lock")
    }

    /// Removes files of gateways that do not run and have said nothing for a week.
    pub(super) fn tidy(&self) {
        const OLD: Duration = Duration::from_secs(7 * 24 * 3600);
        let running = self.gateways();
        for file in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = file.path();
            let kind = path.extension().and_then(OsStr::to_str);
            let is_rest = kind.is_some_and(|kind| ["log", "lock"].contains(&kind));
            let is_of_running = running
                .iter()
                .any(|name| self.log(name) == path || self.lock(name) == path);
            let age = file.metadata().and_then(|file| file.modified());
            let age = age.ok().and_then(|modified| modified.elapsed().ok());
            if is_rest && !is_of_running && age.is_some_and(|age| age > OLD) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// The socket of the process that has a journal open.
    ///
    /// # Errors
    /// What the system says where the file is not there.
    pub fn journal(&self, file: &Path) -> io::Result<PathBuf> {
        let file = std::fs::metadata(file)?;
        let name = format!("journal-{:x}-{:x}.sock", file.dev(), file.ino());
        Ok(self.0.join(name))
    }

    /// What the gateway logs.
    pub fn log(&self, name: &GatewayName) -> PathBuf {
        self.file(name, "log")
    }

    fn file(&self, name: &GatewayName, kind: &str) -> PathBuf {
        self.0.join(format!("{PREFIX}{name}.{kind}"))
    }
}
