//! The door of the process that has a journal open: others ask it for the questions, and answer them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use code_mode_host::{Answer, Journal, JournalError, JournaledQuestion};
use code_mode_mcp::shim::Place;
use code_mode_system::{Connection, Listener};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::task::AbortHandle;

use super::{Answered, answered};

/// Connections at once.
const MAX_CONNECTIONS: usize = 16;
/// The bytes of a request, and of an answer.
const MAX_REQUEST: u64 = 1 << 20;
const MAX_ANSWER: u64 = 256 << 20;
/// How long a request and its answer may take.
const TIME: Duration = Duration::from_secs(10);

/// A request: one line of JSON, as its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wants {
    Questions,
    Answer { numbers: Vec<u64>, answer: Answer },
}

/// Open until this is dropped.
pub(crate) struct Door(AbortHandle);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Door {
    /// Opens the door of a journal that this process has. Where there can be none, questions are answered once this
    /// process has ended. Must be called within a tokio runtime.
    ///
    /// `may_answer` where the policy of this process lets other terminals answer: it may have changed since a
    /// question was kept.
    pub(crate) fn open(path: &Path, journal: &Journal, may_answer: bool) -> Self {
        let (path, journal) = (path.to_owned(), journal.clone());
        let serving = tokio::spawn(async move {
            let listener = match place(&path) {
                Ok(socket) => Listener::unix(&socket, MAX_CONNECTIONS).await,
                Err(error) => Err(error),
            };
            match listener {
                Ok(listener) => serve(&listener, &journal, may_answer).await,
                Err(error) => {
                    tracing::warn!(%error, "`code-mode approvals` cannot reach this process");
                }
            }
        });
        Self(serving.abort_handle())
    }
}

fn place(journal: &Path) -> io::Result<PathBuf> {
    let place = Place::of_user().map_err(io::Error::other)?;
    place.journal(journal)
}

async fn serve(listener: &Listener, journal: &Journal, may_answer: bool) {
    loop {
        let warn = |error: &io::Error| tracing::warn!("cannot accept a connection: {error}");
        let incoming = listener.accept(warn).await;
        let journal = journal.clone();
        tokio::spawn(async move {
            let served = async { serve_one(incoming.connect().await?, journal, may_answer).await };
            let served = tokio::time::timeout(TIME, served).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, "a request for questions");
            }
        });
    }
}

async fn serve_one(
    mut connection: Connection,
    journal: Journal,
    may_answer: bool,
) -> io::Result<()> {
    let mut request = Vec::new();
    let mut reader = tokio::io::BufReader::new((&mut connection).take(MAX_REQUEST));
    reader.read_until(b'\n', &mut request).await?;
    let wants: Wants = serde_json::from_slice(&request)?;
    let answer = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
        let mut answer = match wants {
            Wants::Questions => {
                let questions = journal.questions().map_err(|error| error.to_string());
                serde_json::to_vec(&questions)?
            }
            Wants::Answer { numbers, .. } if !may_answer => {
                let why = JournalError::NotFromTerminal;
                let refused = |number| Answered::Refused(format!("{number}: {why}"));
                let all: Vec<Answered> = numbers.into_iter().map(refused).collect();
                serde_json::to_vec(&Ok::<_, String>(all))?
            }
            Wants::Answer { numbers, answer } => {
                let all = answered(&journal, &numbers, answer);
                serde_json::to_vec(&all.map_err(|error| error.to_string()))?
            }
        };
        answer.push(b'\n');
        Ok(answer)
    });
    let answer = answer.await.map_err(io::Error::other)??;
    connection.write_all(&answer).await?;
    connection.shutdown().await
}

/// Asks the process that has a journal open.
pub(super) struct Client(PathBuf);

impl Client {
    /// The client of the process that has this journal open; `None` where it has no door.
    pub(super) fn of(journal: &Path) -> Option<Self> {
        let socket = place(journal).ok()?;
        // One of a process that was killed has nobody behind it.
        UnixStream::connect(&socket).ok()?;
        Some(Self(socket))
    }

    pub(super) fn questions(&self) -> io::Result<Vec<JournaledQuestion>> {
        self.ask(&Wants::Questions)
    }

    pub(super) fn answer(&self, numbers: &[u64], answer: Answer) -> io::Result<Vec<Answered>> {
        let numbers = numbers.to_vec();
        self.ask(&Wants::Answer { numbers, answer })
    }

    fn ask<T: DeserializeOwned>(&self, wants: &Wants) -> io::Result<T> {
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(TIME))?;
        stream.set_write_timeout(Some(TIME))?;
        let mut request = serde_json::to_vec(wants)?;
        request.push(b'\n');
        stream.write_all(&request)?;
        let mut answer = Vec::new();
        let read = BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut answer);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::other("it is silent for 10 s"),
            _ => error,
        })?;
        if answer.is_empty() {
            return Err(io::Error::other("it has ended; a part may be done"));
        }
        let answer: Result<T, String> = serde_json::from_slice(&answer)?;
        answer.map_err(io::Error::other)
    }
}
