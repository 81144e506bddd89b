//! Traces that were written to files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use code_mode_host::{TRACE_VERSION, TraceEvent, TraceLine};

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    /// A line makes no sense.
    #[error("{}: line {line}: {error}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        #[source]
        error: serde_json::Error,
    },
    /// The file is not a trace, or has another version.
    #[error("{}: no trace of version {TRACE_VERSION}", .0.display())]
    NoTrace(PathBuf),
    /// The output cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
}

impl TraceError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Write { .. } => 3,
            _ => crate::WRONG_USAGE,
        })
    }
}

/// The lines of a trace. The last may be missing its end: whoever wrote it may have been
/// ended.
pub(crate) fn read(path: &Path) -> Result<Vec<TraceLine>, TraceError> {
    let text = std::fs::read_to_string(path).map_err(|error| TraceError::Read {
        path: path.to_owned(),
        error,
    })?;
    let mut lines: Vec<TraceLine> = Vec::new();
    let mut numbered = (1..).zip(text.lines()).peekable();
    while let Some((number, line)) = numbered.next() {
        match serde_json::from_str(line) {
            Ok(line) => lines.push(line),
            Err(_) if numbered.peek().is_none() && !text.ends_with('\n') && !lines.is_empty() => {}
            Err(error) => {
                return Err(TraceError::Line {
                    path: path.to_owned(),
                    line: number,
                    error,
                });
            }
        }
    }
    match lines.first().map(|line| &line.event) {
        Some(TraceEvent::Began {
            version: TRACE_VERSION,
            ..
        }) => Ok(lines),
        _ => Err(TraceError::NoTrace(path.to_owned())),
    }
}
