//! Finding the worker program.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::process::SpawnError;

/// The program that workers are started from.
pub const PROGRAM_NAME: &str = if cfg!(windows) {
    "code-mode.exe"
} else {
    "code-mode"
};

/// The environment variable that names the program.
const VARIABLE: &str = "CODE_MODE_BIN";

/// The worker program: what `CODE_MODE_BIN` names; else the one beside the running program (or
/// the running one itself, where it has the name), else the first on `PATH`, where every package
/// puts it.
///
/// # Errors
/// [`SpawnError::NotFound`], which says where it was looked for.
pub(crate) fn find() -> Result<PathBuf, SpawnError> {
    let running = env::current_exe().ok();
    let beside = running.as_deref().and_then(Path::parent);
    find_in(env::var_os(VARIABLE), beside, env::var_os("PATH"))
}

fn find_in(
    named: Option<OsString>,
    beside: Option<&Path>,
    path: Option<OsString>,
) -> Result<PathBuf, SpawnError> {
    let not_found = |looked: String| SpawnError::NotFound { looked };
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        return match named.is_file() {
            true => Ok(named),
            false => Err(not_found(format!(
                "{VARIABLE} names {}, which is not a file",
                named.display()
            ))),
        };
    }
    let on_path: Vec<PathBuf> = path.iter().flat_map(env::split_paths).collect();
    let folders = beside.map(Path::to_owned).into_iter().chain(on_path);
    let found = folders.map(|folder| folder.join(PROGRAM_NAME));
    found
        .into_iter()
        .find(|program| program.is_file())
        .ok_or_else(|| {
            let beside = match beside {
                Some(folder) => format!(
                    "it is not in {}, beside the running program",
                    folder.display()
                ),
                None => "nobody knows where the running program is".to_owned(),
            };
            not_found(format!(
                "{VARIABLE} is not set; {beside}; it is not on PATH"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_comes_before_the_place_beside_and_that_before_path_and_an_error_names_all() {
        let place = |name: &str| {
            let folder = env::temp_dir().join(format!("locate-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("made");
            std::fs::write(folder.join(PROGRAM_NAME), "").expect("written");
            folder
        };
        let (beside, on_path, empty) = (place("beside"), place("path"), env::temp_dir());
        let path = Some(OsString::from(&on_path));
        let named = beside.join(PROGRAM_NAME);
        let found = find_in(Some(named.clone().into()), None, path.clone());
        assert_eq!(found.expect("there"), named);
        let found = find_in(None, Some(&beside), path.clone());
        assert_eq!(found.expect("there"), named);
        let found = find_in(None, Some(&empty), path.clone());
        assert_eq!(found.expect("there"), on_path.join(PROGRAM_NAME));
        let wrong = find_in(Some("/no/such".into()), Some(&beside), path);
        let wrong = wrong.expect_err("no file").to_string();
        assert!(wrong.contains("CODE_MODE_BIN names /no/such"), "{wrong}");
        let nowhere = find_in(None, Some(&empty), None).expect_err("nothing");
        let nowhere = nowhere.to_string();
        for said in [
            "CODE_MODE_BIN is not set",
            "beside the running",
            "not on PATH",
        ] {
            assert!(
                nowhere.contains(said) && !nowhere.contains('\n'),
                "{nowhere}"
            );
        }
        for folder in [beside, on_path] {
            std::fs::remove_dir_all(folder).expect("removed");
        }
    }
}
