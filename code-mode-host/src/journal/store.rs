//! The tables of a journal: reading and writing them.
//!
//! A session has a number, under which everything of it is kept. Stored values have versions: a cell
//! that runs again finds those of the version at which it began.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use code_mode_protocol::{
    CellOutcome, Json, Limits, RuntimeToolCallId, ToolAnswer, ToolDefinition, ToolSet,
};
use redb::{
    Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::{EndRecord, Loaded, Program, Record, Restored, RestoredCell, Step, wall_time};
use super::{
    JournalError, JournaledCall, JournaledCell, JournaledCut, JournaledSession, question_rows,
};

/// The version of the tables.
const VERSION: u64 = 1;

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// By the session's name.
const SESSIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sessions");
/// Of each session: the number of the last cell, and the version of the values.
const COUNTERS: TableDefinition<'_, u64, (u64, u64)> = TableDefinition::new("counters");
/// By session, key and version.
const VALUES: TableDefinition<'_, (u64, &str, u64), &str> = TableDefinition::new("values");
/// By session and hash of the definition.
const TOOLS: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("tools");
/// By session and cell.
pub(super) const PROGRAMS: TableDefinition<'_, (u64, u64), &[u8]> =
    TableDefinition::new("programs");
/// Of the cells that run: the version of the values that each found.
const VIEWS: TableDefinition<'_, (u64, u64), u64> = TableDefinition::new("views");
/// Items and notifications that were taken.
const TAKEN: TableDefinition<'_, (u64, u64), (u64, u64)> = TableDefinition::new("taken");
const ENDS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("ends");
/// By session, cell and place in the cell's log.
const LOG: TableDefinition<'_, (u64, u64, u64), &[u8]> = TableDefinition::new("log");

/// A session without its cells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionRow {
    pub(super) id: u64,
    pub(super) created_ms: u64,
    pub(super) opened_ms: u64,
    pub(super) version: String,
    pub(crate) guided: bool,
    pub(crate) check_inputs: bool,
    pub(crate) require_readable_schemas: bool,
    pub(crate) limits: Limits,
}

/// A [`Program`] on disk, whose tools are elsewhere.
#[derive(Debug, Serialize, Deserialize)]
struct ProgramRow {
    tool_call_id: String,
    source: String,
    tools: Vec<[u8; 16]>,
    constants: Vec<(String, Json)>,
    seed: u64,
    start_ms: f64,
    to_pending: bool,
    view: u64,
}

/// A tool with what no wire has of it.
#[derive(Serialize, Deserialize)]
struct ToolRow {
    definition: ToolDefinition,
    answer: ToolAnswer,
    deferred: bool,
    hidden: bool,
    idempotent: bool,
    observed: Option<String>,
}

/// Runs something with a store, which panics where a page is not what its checksum says.
pub(super) fn guarded<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    // What the store had in hand is not used again: its session or its file is given up.
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(JournalError::Damaged {
            path: path.to_owned(),
            why: text.unwrap_or("it cannot be read").to_owned(),
        })
    })
}

/// The tables of one file.
pub(super) struct Store {
    pub(super) database: Database,
    pub(super) path: PathBuf,
}

/// Where the log of each cell continues.
pub(super) type Places = HashMap<(u64, u64), u64>;

pub(super) fn storage(error: impl ToString) -> JournalError {
    JournalError::Storage(error.to_string())
}

pub(super) fn encoded(value: &impl Serialize) -> Result<Vec<u8>, JournalError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(storage)
}

pub(super) fn decoded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // A damaged entry may say that it is of any length.
    let limited = bincode::config::standard().with_limit::<{ 512 << 20 }>();
    let read = bincode::serde::decode_from_slice(bytes, limited);
    match read {
        Ok((value, length)) if length == bytes.len() => Ok(value),
        Ok(_) => Err("there are bytes after an entry".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Store {
    /// The tables in a file, which is made where it does not exist.
    pub(super) fn open(path: &Path, backend: impl StorageBackend) -> Result<Self, JournalError> {
        let damaged = |why: String| JournalError::Damaged {
            path: path.to_owned(),
            why,
        };
        let opened = Database::builder().create_with_backend(backend);
        let database = opened.map_err(|error| damaged(error.to_string()))?;
        let store = Self {
            database,
            path: path.to_owned(),
        };
        let write = store.begin()?;
        {
            let mut meta = write.open_table(META).map_err(storage)?;
            let found = meta.get("version").map_err(storage)?;
            let found = found.map(|found| found.value());
            match found {
                Some(VERSION) => {}
                Some(found) if found > VERSION => {
                    return Err(JournalError::Newer {
                        path: path.to_owned(),
                        found: u32::try_from(found).unwrap_or(u32::MAX),
                        known: VERSION as u32,
                    });
                }
                Some(_) => return Err(damaged("its version does not exist".to_owned())),
                None => {
                    meta.insert("version", VERSION).map_err(storage)?;
                }
            }
            // A reader finds every table.
            write.open_table(SESSIONS).map_err(storage)?;
            write.open_table(COUNTERS).map_err(storage)?;
            write.open_table(VALUES).map_err(storage)?;
            write.open_table(TOOLS).map_err(storage)?;
            write.open_table(PROGRAMS).map_err(storage)?;
            write.open_table(VIEWS).map_err(storage)?;
            write.open_table(TAKEN).map_err(storage)?;
            write.open_table(ENDS).map_err(storage)?;
            write.open_table(LOG).map_err(storage)?;
            question_rows::open_tables(&write)?;
        }
        write.commit().map_err(storage)?;
        Ok(store)
    }

    /// Checks every page.
    pub(super) fn check(&mut self) -> Result<(), JournalError> {
        match self.database.check_integrity() {
            Ok(true) => Ok(()),
            Ok(false) => Err(JournalError::Damaged {
                path: self.path.clone(),
                why: "pages were damaged, and repaired".to_owned(),
            }),
            Err(error) => Err(JournalError::Damaged {
                path: self.path.clone(),
                why: error.to_string(),
            }),
        }
    }

    pub(super) fn begin(&self) -> Result<WriteTransaction, JournalError> {
        self.database.begin_write().map_err(storage)
    }

    /// Writes records of sessions, in order and in one transaction.
    pub(super) fn write(
        &self,
        records: Vec<(u64, Record)>,
        places: &mut Places,
    ) -> Result<(), JournalError> {
        let write = self.begin()?;
        for (session, record) in records {
            put(&write, session, record, places)?;
        }
        write.commit().map_err(storage)
    }

    /// The session of this name, which is made where it does not exist; `open_now` changes it.
    pub(super) fn session(
        &self,
        name: &str,
        new: impl FnOnce(u64) -> Option<(SessionRow, Vec<(String, Json)>)>,
        now_ms: u64,
    ) -> Result<SessionRow, JournalError> {
        let write = self.begin()?;
        let row = {
            let mut sessions = write.open_table(SESSIONS).map_err(storage)?;
            let found = sessions.get(name).map_err(storage)?;
            let found = found.map(|row| decoded::<SessionRow>(row.value()));
            let row = match found {
                Some(row) => {
                    let mut row = row.map_err(|why| entry(name, why))?;
                    row.opened_ms = now_ms;
                    let views = write.open_table(VIEWS).map_err(storage)?;
                    // Running cells keep the rules under which they began.
                    if !is_any_running(&views, row.id)?
                        && let Some((wanted, _)) = new(row.id)
                    {
                        row = SessionRow {
                            created_ms: row.created_ms,
                            ..wanted
                        };
                    }
                    row
                }
                None => {
                    let mut meta = write.open_table(META).map_err(storage)?;
                    let last = meta.get("last session").map_err(storage)?;
                    let id = last.map_or(0, |last| last.value()) + 1;
                    let made = new(id).ok_or_else(|| JournalError::NoSession(name.to_owned()));
                    let (row, stored) = made?;
                    meta.insert("last session", id).map_err(storage)?;
                    let mut values = write.open_table(VALUES).map_err(storage)?;
                    for (key, json) in stored {
                        values
                            .insert((id, key.as_str(), 0), json.as_str())
                            .map_err(storage)?;
                    }
                    row
                }
            };
            sessions
                .insert(name, encoded(&row)?.as_slice())
                .map_err(storage)?;
            row
        };
        write.commit().map_err(storage)?;
        Ok(row)
    }

    /// The state of a session.
    pub(super) fn restore(&self, name: &str, session: u64) -> Result<Restored, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let counters = read.open_table(COUNTERS).map_err(storage)?;
        let counters = counters.get(session).map_err(storage)?;
        let (last_cell, version) = counters.map_or((0, 0), |counters| counters.value());
        let cells = self.cells(name, session)?.into_iter();
        Ok(Restored {
            stored: self.values(session, u64::MAX, name)?,
            version,
            last_cell,
            cells: cells.map(|(cell, ..)| cell).collect(),
        })
    }

    /// The cells of a session that are not closed, with their programs and logs.
    fn cells(
        &self,
        name: &str,
        session: u64,
    ) -> Result<Vec<(RestoredCell, ProgramRow, Vec<Step>)>, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let wrong = |why: String| entry(name, why);
        let mut cells = Vec::new();
        let programs = read.open_table(PROGRAMS).map_err(storage)?;
        let taken = read.open_table(TAKEN).map_err(storage)?;
        let ends = read.open_table(ENDS).map_err(storage)?;
        let range = programs
            .range((session, 0)..(session + 1, 0))
            .map_err(storage)?;
        for found in range {
            let (key, program) = found.map_err(storage)?;
            let (_, cell) = key.value();
            let program: ProgramRow = decoded(program.value()).map_err(wrong)?;
            let (items, notified) = taken
                .get((session, cell))
                .map_err(storage)?
                .map_or((0, 0), |taken| taken.value());
            let end = ends.get((session, cell)).map_err(storage)?;
            let end: Option<EndRecord> = match end {
                Some(end) => Some(decoded(end.value()).map_err(wrong)?),
                None => None,
            };
            let steps = self.steps(session, cell, name)?;
            let last_mode = steps.iter().rev().find_map(|step| match step {
                Step::Mode { to_pending } => Some(*to_pending),
                _ => None,
            });
            let restored = RestoredCell {
                cell,
                tool_call_id: program.tool_call_id.clone(),
                tools: self.tools(session, &program.tools, name)?,
                to_pending: last_mode.unwrap_or(program.to_pending),
                taken: items,
                notified,
                log_bytes: steps.iter().map(Step::bytes).sum(),
                end,
            };
            cells.push((restored, program, steps));
        }
        Ok(cells)
    }

    /// A cell's program and log.
    pub(super) fn load(
        &self,
        name: &str,
        session: u64,
        cell: u64,
        now_ms: f64,
    ) -> Result<Loaded, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let programs = read.open_table(PROGRAMS).map_err(storage)?;
        let row = programs.get((session, cell)).map_err(storage)?;
        let row = row.ok_or_else(|| entry(name, format!("the cell {cell} is missing")))?;
        let row: ProgramRow = decoded(row.value()).map_err(|why| entry(name, why))?;
        let steps = self.steps(session, cell, name)?;
        Ok(Loaded {
            view: self.values(session, row.view, name)?,
            wall: wall_time(row.start_ms, &steps, now_ms),
            program: Program {
                tools: self.tools(session, &row.tools, name)?,
                tool_call_id: row.tool_call_id,
                source: row.source,
                constants: row.constants,
                seed: row.seed,
                start_ms: row.start_ms,
                to_pending: row.to_pending,
                view: row.view,
            },
            steps,
        })
    }

    /// The stored values of a session at a version.
    fn values(
        &self,
        session: u64,
        version: u64,
        name: &str,
    ) -> Result<Vec<(String, Json)>, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let values = read.open_table(VALUES).map_err(storage)?;
        let range = values
            .range((session, "", 0)..(session + 1, "", 0))
            .map_err(storage)?;
        let mut found: Vec<(String, Json)> = Vec::new();
        for value in range {
            let (key, json) = value.map_err(storage)?;
            let (_, key, at) = key.value();
            if at > version {
                continue;
            }
            let json = Json::parse(json.value().to_owned());
            let json = json.map_err(|why| entry(name, why.to_string()))?;
            // The versions of a key come in their order.
            match found.last_mut() {
                Some(last) if last.0 == key => last.1 = json,
                _ => found.push((key.to_owned(), json)),
            }
        }
        Ok(found)
    }

    fn steps(&self, session: u64, cell: u64, name: &str) -> Result<Vec<Step>, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let log = read.open_table(LOG).map_err(storage)?;
        let range = log
            .range((session, cell, 0)..(session, cell + 1, 0))
            .map_err(storage)?;
        let mut steps = Vec::new();
        for step in range {
            let (_, step) = step.map_err(storage)?;
            steps.push(decoded(step.value()).map_err(|why| entry(name, why))?);
        }
        Ok(steps)
    }

    fn tools(
        &self,
        session: u64,
        hashes: &[[u8; 16]],
        name: &str,
    ) -> Result<ToolSet, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let tools = read.open_table(TOOLS).map_err(storage)?;
        let mut found = Vec::new();
        for hash in hashes {
            let row = tools.get((session, hash.as_slice())).map_err(storage)?;
            let row = row.ok_or_else(|| entry(name, "a tool is missing".to_owned()))?;
            let row: ToolRow = decoded(row.value()).map_err(|why| entry(name, why))?;
            let tool = row.definition.answer(row.answer).deferred(row.deferred);
            let tool = tool.hidden(row.hidden).idempotent(row.idempotent);
            found.push(tool.observed(row.observed));
        }
        Ok(ToolSet::from(found))
    }

    /// The row of a session.
    pub(super) fn row(&self, name: &str) -> Result<Option<SessionRow>, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let sessions = read.open_table(SESSIONS).map_err(storage)?;
        let row = sessions.get(name).map_err(storage)?;
        row.map(|row| decoded(row.value()).map_err(|why| entry(name, why)))
            .transpose()
    }

    /// The names of the sessions, and their rows.
    pub(super) fn rows(&self) -> Result<Vec<(String, SessionRow)>, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let sessions = read.open_table(SESSIONS).map_err(storage)?;
        let mut rows = Vec::new();
        for row in sessions.iter().map_err(storage)? {
            let (name, row) = row.map_err(storage)?;
            let name = name.value().to_owned();
            let row = decoded(row.value()).map_err(|why| entry(&name, why))?;
            rows.push((name, row));
        }
        Ok(rows)
    }

    /// A session for a person.
    pub(super) fn shown(
        &self,
        name: String,
        row: SessionRow,
    ) -> Result<JournaledSession, JournalError> {
        let mut cells = Vec::new();
        for (cell, program, steps) in self.cells(&name, row.id)? {
            let outcome = cell.end.map(|end| CellOutcome::from(end.outcome).as_str());
            let answered: HashSet<RuntimeToolCallId> = (steps.iter())
                .filter_map(|step| match step {
                    Step::Answer { call, .. } => Some(*call),
                    _ => None,
                })
                .collect();
            let (mut cuts, mut made) = (Vec::new(), 0);
            let mut attempts: HashMap<RuntimeToolCallId, u32> = HashMap::new();
            for step in &steps {
                match step {
                    Step::Intent { .. } => made += 1,
                    Step::Attempt { call, attempt } => {
                        attempts.insert(*call, *attempt);
                    }
                    Step::Cut { at_ms } => cuts.push(JournaledCut {
                        at_ms: at_ms.max(0.0) as u64,
                        calls: made,
                    }),
                    _ => {}
                }
            }
            let calls = steps.iter().filter_map(|step| match step {
                Step::Intent { call, tool, input } => Some(JournaledCall {
                    call: call.0,
                    tool: (cell.tools)
                        .get(*tool as usize)
                        .map_or_else(String::new, |tool| tool.name.clone()),
                    input: input.clone(),
                    is_answered: answered.contains(call),
                    attempts: attempts.get(call).copied().unwrap_or(1),
                }),
                _ => None,
            });
            let is_turn = |step: &&Step| matches!(step, Step::Turn(_));
            cells.push(JournaledCell {
                cell: cell.cell,
                began_ms: program.start_ms.max(0.0) as u64,
                calls: calls.collect(),
                cuts,
                turns: steps.iter().filter(is_turn).count(),
                tool_call_id: program.tool_call_id,
                source: program.source,
                constants: program.constants,
                outcome,
                log_bytes: cell.log_bytes,
            });
        }
        let stored = self.values(row.id, u64::MAX, &name)?.into_iter();
        let stored = stored.map(|(key, json)| (key, json.as_str().len()));
        Ok(JournaledSession {
            stored: stored.collect(),
            name,
            created_ms: row.created_ms,
            opened_ms: row.opened_ms,
            version: row.version,
            guided: row.guided,
            check_inputs: row.check_inputs,
            limits: row.limits,
            cells,
        })
    }

    /// Whether a cell of a session runs.
    pub(super) fn has_running(&self, session: u64) -> Result<bool, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        is_any_running(&read.open_table(VIEWS).map_err(storage)?, session)
    }

    /// Removes a session with all that is kept of it.
    pub(super) fn remove(&self, name: &str, session: u64) -> Result<(), JournalError> {
        let write = self.begin()?;
        {
            let mut sessions = write.open_table(SESSIONS).map_err(storage)?;
            sessions.remove(name).map_err(storage)?;
            let mut counters = write.open_table(COUNTERS).map_err(storage)?;
            counters.remove(session).map_err(storage)?;
            let mut values = write.open_table(VALUES).map_err(storage)?;
            let of_session = (session, "", 0)..(session + 1, "", 0);
            values
                .retain_in(of_session, |_, _| false)
                .map_err(storage)?;
            let mut tools = write.open_table(TOOLS).map_err(storage)?;
            let none: &[u8] = &[];
            let of_session = (session, none)..(session + 1, none);
            tools.retain_in(of_session, |_, _| false).map_err(storage)?;
            let of_session = || (session, 0)..(session + 1, 0);
            let mut programs = write.open_table(PROGRAMS).map_err(storage)?;
            programs
                .retain_in(of_session(), |_, _| false)
                .map_err(storage)?;
            let mut views = write.open_table(VIEWS).map_err(storage)?;
            views
                .retain_in(of_session(), |_, _| false)
                .map_err(storage)?;
            let mut taken = write.open_table(TAKEN).map_err(storage)?;
            taken
                .retain_in(of_session(), |_, _| false)
                .map_err(storage)?;
            let mut ends = write.open_table(ENDS).map_err(storage)?;
            ends.retain_in(of_session(), |_, _| false)
                .map_err(storage)?;
            let mut log = write.open_table(LOG).map_err(storage)?;
            let of_session = (session, 0, 0)..(session + 1, 0, 0);
            log.retain_in(of_session, |_, _| false).map_err(storage)?;
            question_rows::remove_of(&write, session, None)?;
        }
        write.commit().map_err(storage)
    }

    /// Where the log of a cell continues.
    pub(super) fn place(&self, session: u64, cell: u64) -> Result<u64, JournalError> {
        let read = self.database.begin_read().map_err(storage)?;
        let log = read.open_table(LOG).map_err(storage)?;
        let mut range = log
            .range((session, cell, 0)..(session, cell + 1, 0))
            .map_err(storage)?;
        match range.next_back() {
            None => Ok(0),
            Some(last) => Ok(last.map_err(storage)?.0.value().2 + 1),
        }
    }
}

fn is_any_running(
    views: &impl ReadableTable<(u64, u64), u64>,
    session: u64,
) -> Result<bool, JournalError> {
    let of_session = (session, 0)..(session + 1, 0);
    let mut running = views.range(of_session).map_err(storage)?;
    Ok(running.next().is_some())
}

pub(super) fn entry(session: &str, why: String) -> JournalError {
    JournalError::Entry {
        session: session.to_owned(),
        why,
    }
}

/// Writes one record.
fn put(
    write: &WriteTransaction,
    session: u64,
    record: Record,
    places: &mut Places,
) -> Result<(), JournalError> {
    match record {
        Record::Began { cell, program } => {
            let mut tools = write.open_table(TOOLS).map_err(storage)?;
            let mut hashes = Vec::new();
            for tool in program.tools.iter() {
                let row = encoded(&ToolRow {
                    definition: tool.clone(),
                    answer: tool.answer,
                    deferred: tool.deferred,
                    hidden: tool.hidden,
                    idempotent: tool.idempotent,
                    observed: tool.observed.clone(),
                })?;
                let digest = Sha256::digest(&row);
                let mut hash = [0; 16];
                hash.copy_from_slice(&digest[..16]);
                let key = (session, hash.as_slice());
                if tools.get(key).map_err(storage)?.is_none() {
                    tools.insert(key, row.as_slice()).map_err(storage)?;
                }
                hashes.push(hash);
            }
            let mut counters = write.open_table(COUNTERS).map_err(storage)?;
            let version = counters.get(session).map_err(storage)?;
            let version = version.map_or(0, |counters| counters.value().1);
            counters.insert(session, (cell, version)).map_err(storage)?;
            let mut views = write.open_table(VIEWS).map_err(storage)?;
            views
                .insert((session, cell), program.view)
                .map_err(storage)?;
            let row = encoded(&ProgramRow {
                tool_call_id: program.tool_call_id,
                source: program.source,
                tools: hashes,
                constants: program.constants,
                seed: program.seed,
                start_ms: program.start_ms,
                to_pending: program.to_pending,
                view: program.view,
            })?;
            let mut programs = write.open_table(PROGRAMS).map_err(storage)?;
            programs
                .insert((session, cell), row.as_slice())
                .map_err(storage)?;
        }
        Record::Step { cell, step } => {
            let mut log = write.open_table(LOG).map_err(storage)?;
            let place = places.entry((session, cell)).or_default();
            log.insert((session, cell, *place), encoded(&step)?.as_slice())
                .map_err(storage)?;
            *place += 1;
        }
        Record::Taken { cell, items } => {
            let mut taken = write.open_table(TAKEN).map_err(storage)?;
            let before = taken.get((session, cell)).map_err(storage)?;
            let notified = before.map_or(0, |taken| taken.value().1);
            taken
                .insert((session, cell), (items, notified))
                .map_err(storage)?;
        }
        Record::Notified {
            cell,
            notifications,
        } => {
            let mut taken = write.open_table(TAKEN).map_err(storage)?;
            let before = taken.get((session, cell)).map_err(storage)?;
            let items = before.map_or(0, |taken| taken.value().0);
            taken
                .insert((session, cell), (items, notifications))
                .map_err(storage)?;
        }
        Record::Ended {
            cell,
            end,
            writes,
            version,
        } => {
            let mut ends = write.open_table(ENDS).map_err(storage)?;
            ends.insert((session, cell), encoded(&end)?.as_slice())
                .map_err(storage)?;
            let mut views = write.open_table(VIEWS).map_err(storage)?;
            views.remove((session, cell)).map_err(storage)?;
            let oldest = views
                .range((session, 0)..(session + 1, 0))
                .map_err(storage)?
                .filter_map(|view| view.ok().map(|(_, view)| view.value()))
                .min();
            let mut log = write.open_table(LOG).map_err(storage)?;
            let of_cell = (session, cell, 0)..(session, cell + 1, 0);
            log.retain_in(of_cell, |_, _| false).map_err(storage)?;
            places.remove(&(session, cell));
            question_rows::remove_of(write, session, Some(cell))?;
            if !writes.is_empty() {
                let mut counters = write.open_table(COUNTERS).map_err(storage)?;
                let last = counters.get(session).map_err(storage)?;
                let last = last.map_or(0, |counters| counters.value().0);
                counters.insert(session, (last, version)).map_err(storage)?;
                let mut values = write.open_table(VALUES).map_err(storage)?;
                for (key, json) in &writes {
                    let key = key.as_str();
                    values
                        .insert((session, key, version), json.as_str())
                        .map_err(storage)?;
                    // The version that the oldest cell which runs found, and later ones, stay.
                    let until = oldest.unwrap_or(version).min(version);
                    let newest = {
                        let mut found = values
                            .range((session, key, 0)..=(session, key, until))
                            .map_err(storage)?;
                        let last = found.next_back().transpose().map_err(storage)?;
                        last.map(|(found, _)| found.value().2)
                    };
                    if let Some(newest) = newest {
                        let older = (session, key, 0)..(session, key, newest);
                        values.retain_in(older, |_, _| false).map_err(storage)?;
                    }
                }
            }
        }
        Record::Closed { cell } => {
            let key = (session, cell);
            let mut programs = write.open_table(PROGRAMS).map_err(storage)?;
            programs.remove(key).map_err(storage)?;
            let mut taken = write.open_table(TAKEN).map_err(storage)?;
            taken.remove(key).map_err(storage)?;
            let mut ends = write.open_table(ENDS).map_err(storage)?;
            ends.remove(key).map_err(storage)?;
        }
    }
    Ok(())
}

/// The store, as its writer and its readers share it.
pub(super) type SharedStore = Arc<Store>;
