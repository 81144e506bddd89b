//! What a person, or a program that reads JSON lines, sees of a run.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine;
use code_mode_host::{NestedToolCall, ToolCallFinished};
use code_mode_protocol::{ContentItem, Note, SourcePosition};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use code_mode_protocol::text::visible;
use code_mode_system::{HeldStandardError, say};

/// How V8 names a cell's module in stack frames.
const MODULE_NAME: &str = "exec_main.mjs";

/// The two streams of a run.
pub(crate) struct Output {
    /// What a person calls the script.
    script: String,
    json: bool,
    media_dir: Option<PathBuf>,
    media: AtomicUsize,
    /// Whether a person sees standard output and standard error.
    terminals: (bool, bool),
    /// On a terminal only.
    spinner: Option<ProgressBar>,
    /// Whether the status line counts calls.
    progress: bool,
    calls: Calls,
    /// Held by whoever shows something that takes time to read: a question to a person.
    terminal: tokio::sync::Mutex<()>,
    /// Lines that wait for the end of a question; `None` while no question is open.
    held: Mutex<Option<Vec<String>>>,
    /// Why output could not be written.
    lost: OnceLock<std::io::Error>,
    unfinished: AtomicBool,
    /// The tools that run, where there is a status line.
    tools: Mutex<Vec<String>>,
}

/// A question is on the terminal: until this is dropped, nothing else is written.
pub(crate) struct Asking<'a> {
    output: &'a Output,
    _terminal: tokio::sync::MutexGuard<'a, ()>,
    _stderr: HeldStandardError,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(spinner) = &self.output.spinner {
            spinner.set_draw_target(ProgressDrawTarget::stderr());
        }
        for line in self.output.held().take().into_iter().flatten() {
            self.output.put(format_args!("{line}\n"));
        }
    }
}

/// Calls of the script.
#[derive(Default)]
struct Calls {
    begun: AtomicUsize,
    done: AtomicUsize,
}

/// Shows a running tool on the status line until dropped.
pub(crate) struct Running<'a> {
    output: &'a Output,
    name: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(spinner) = &self.output.spinner {
            let mut tools = self.output.tools();
            if let Some(at) = tools.iter().position(|name| *name == self.name) {
                tools.remove(at);
            }
            spinner.set_message(Output::activity(&tools));
        }
    }
}

impl Output {
    pub(crate) fn new(
        script: String,
        (json, progress): (bool, bool),
        media_dir: Option<PathBuf>,
    ) -> Self {
        let spinner = (!json && std::io::stderr().is_terminal()).then(|| {
            let spinner = ProgressBar::new_spinner().with_message("running");
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}{msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        Self {
            script,
            json,
            media_dir,
            media: AtomicUsize::new(0),
            terminals: (
                std::io::stdout().is_terminal(),
                std::io::stderr().is_terminal(),
            ),
            spinner,
            progress,
            calls: Calls::default(),
            terminal: tokio::sync::Mutex::default(),
            held: Mutex::default(),
            lost: OnceLock::new(),
            unfinished: AtomicBool::new(false),
            tools: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The terminal, for a question alone.
    pub(crate) async fn ask(&self) -> Asking<'_> {
        let terminal = self.terminal.lock().await;
        if let Some(spinner) = &self.spinner {
            spinner.set_draw_target(ProgressDrawTarget::hidden());
            // What it drew last stays otherwise: the beginning of the line, and an empty line.
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
        *self.held() = Some(Vec::new());
        Asking {
            output: self,
            _terminal: terminal,
            _stderr: HeldStandardError::hold(),
        }
    }

    /// Waits until no question is on the terminal, and keeps questions off it while the returned
    /// guard is held.
    pub(crate) async fn quiet(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.terminal.lock().await
    }

    /// Prints what the status line must not be in the way of.
    fn print(&self, print: impl FnOnce()) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }

    /// A text for standard output.
    fn out<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.terminals.0 {
            true => visible(text),
            false => Cow::Borrowed(text),
        }
    }

    /// A text for standard error.
    fn err<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.terminals.1 {
            true => visible(text),
            false => Cow::Borrowed(text),
        }
    }

    /// Writes to standard output.
    fn put(&self, text: std::fmt::Arguments) {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_fmt(text).and_then(|()| stdout.flush());
        if let Err(error) = written {
            // A reader that went away has seen enough.
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                let _ = self.lost.set(error);
            }
        }
    }

    /// Whether all output was written, to whoever still reads it.
    pub(crate) fn written(&self) -> Result<(), &std::io::Error> {
        self.lost.get().map_or(Ok(()), Err)
    }

    fn line(&self, value: &Value) {
        match &mut *self.held() {
            Some(held) => held.push(value.to_string()),
            None => self.put(format_args!("{value}\n")),
        }
    }

    /// Shows items of output.
    pub(crate) fn items(&self, items: &[ContentItem]) -> Result<(), String> {
        for item in items {
            let shown = match item {
                ContentItem::Text {
                    text,
                    note: Some(note),
                } => {
                    self.note(*note, text);
                    continue;
                }
                ContentItem::Text { text, .. } if self.json => {
                    json!({"type": "text", "text": text})
                }
                ContentItem::Text { text, .. } => {
                    let end = if text.ends_with('\n') { "" } else { "\n" };
                    self.print(|| self.put(format_args!("{}{end}", self.out(text))));
                    continue;
                }
                ContentItem::Image { image_url, detail } => {
                    let mut shown = self.media("image", image_url)?;
                    if let Some(shown) = shown.as_object_mut() {
                        shown.insert("detail".to_owned(), json!(detail));
                    }
                    shown
                }
                ContentItem::Audio { audio_url } => self.media("audio", audio_url)?,
            };
            if self.json {
                self.line(&shown);
            } else {
                let kind = shown["type"].as_str().unwrap_or_default();
                let line = match shown.get("path").and_then(Value::as_str) {
                    Some(path) => format!("[{kind}: {path}]"),
                    None => format!(
                        "[{kind}: {}, {} bytes; --media-dir DIR writes it to a file]",
                        shown["media_type"].as_str().unwrap_or("unknown"),
                        shown["bytes"]
                    ),
                };
                self.print(|| self.put(format_args!("{}\n", self.out(&line))));
            }
        }
        Ok(())
    }

    /// Writes an image or a sound to a file, where there is a folder for it, and
    /// says what it is.
    fn media(&self, kind: &str, url: &str) -> Result<Value, String> {
        let (media_type, bytes) = decode(url);
        let Some(folder) = &self.media_dir else {
            let mut shown = json!({"type": kind, "media_type": media_type, "bytes": bytes.len()});
            if self.json
                && let Some(shown) = shown.as_object_mut()
            {
                shown.insert(format!("{kind}_url"), json!(url));
            }
            return Ok(shown);
        };
        let number = self.media.fetch_add(1, Ordering::Relaxed) + 1;
        let path = folder.join(format!("{kind}-{number}.{}", extension(&media_type)));
        write(folder, &path, &bytes)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(json!({
            "type": kind,
            "media_type": media_type,
            "bytes": bytes.len(),
            "path": path.display().to_string(),
        }))
    }

    /// Shows a line of the script's console, or a warning about the script.
    fn note(&self, note: Note, text: &str) {
        if note == Note::Unfinished {
            self.unfinished.store(true, Ordering::Relaxed);
        }
        // `[error] ...`: a console has several levels.
        let (level, rest) = match text
            .strip_prefix('[')
            .and_then(|text| text.split_once("] "))
        {
            Some((level, rest)) => (level, rest),
            None => ("log", text),
        };
        let rest = &rest.replace(MODULE_NAME, &self.script);
        match note {
            Note::Log if self.json => {
                self.line(&json!({"type": "log", "level": level, "text": rest}));
            }
            Note::Warning | Note::Unfinished if self.json => {
                let is_unfinished = note == Note::Unfinished;
                self.line(&json!({"type": "warning", "unfinished": is_unfinished, "text": rest}));
            }
            Note::Log => self.marked(text),
            Note::Warning | Note::Unfinished => self.problem("warning", rest),
        }
    }

    /// Shows an error or a warning about the script. At a terminal its further lines are set in, so
    /// that none of them can pass for a line of this program.
    fn problem(&self, kind: &str, text: &str) {
        let mut shown = self.err(text).into_owned();
        if self.terminals.1 {
            shown = shown.replace('\n', "\n  ");
        }
        self.print(|| say!("{kind}: {shown}"));
    }

    /// Whether a warning said that the script left something behind.
    pub(crate) fn has_unfinished(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// Shows a notification.
    pub(crate) fn notification(&self, text: &str) {
        match self.json {
            true => self.line(&json!({"type": "notification", "text": text})),
            false => self.marked(text),
        }
    }

    /// Shows a text of the script on standard error. At a terminal each line of it is marked, so
    /// that none of them can pass for a line of this program.
    fn marked(&self, text: &str) {
        if self.terminals.1 {
            let shown = visible(text);
            let marked: Vec<_> = shown.lines().map(|line| format!("| {line}")).collect();
            self.print(|| say!("{}", marked.join("\n")));
        } else {
            self.print(|| say!("{text}"));
        }
    }

    /// Shows that a tool runs.
    pub(crate) fn tool_runs(&self, name: &str) -> Running<'_> {
        if let Some(spinner) = &self.spinner {
            let mut tools = self.tools();
            tools.push(name.to_owned());
            spinner.set_message(Self::activity(&tools));
        }
        Running {
            output: self,
            name: name.to_owned(),
        }
    }

    /// The tools that run, in the order in which they began.
    fn tools(&self) -> MutexGuard<'_, Vec<String>> {
        self.tools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the status line says: the tool that began last is the one to wait for.
    fn activity(tools: &[String]) -> String {
        match tools {
            [] => "running".to_owned(),
            [one] => format!("running tool {one}"),
            [rest @ .., last] => format!("running tool {last} and {} more", rest.len()),
        }
    }

    /// Says that the script called `exit` with a status, where a program reads it.
    pub(crate) fn exited(&self, status: u8) {
        if self.json {
            self.line(&json!({"type": "result", "status": "exited", "exit_status": status}));
        }
    }

    /// Says how the script ended, where a program reads it; errors of the script have more
    /// to say.
    pub(crate) fn result(&self, status: &str) {
        if self.json {
            self.line(&json!({"type": "result", "status": status}));
        }
    }

    /// Says that a call started, where a program reads it.
    pub(crate) fn call_started(&self, call: &NestedToolCall) {
        self.calls.begun.fetch_add(1, Ordering::Relaxed);
        self.say_progress();
        if self.json {
            self.line(&json!({
                "type": "tool_call",
                "status": "started",
                "call": call.runtime_tool_call_id.to_string(),
                "tool": call.tool_name.name,
                "namespace": call.tool_name.namespace,
                "input_bytes": call.input.as_ref().map_or(0, |json| json.as_str().len()),
            }));
        }
    }

    /// Says how a call ended, where a program reads it.
    pub(crate) fn call_finished(&self, call: &ToolCallFinished) {
        self.calls.done.fetch_add(1, Ordering::Relaxed);
        self.say_progress();
        if self.json {
            self.line(&json!({
                "type": "tool_call",
                "status": call.outcome.as_str(),
                "call": call.runtime_tool_call_id.to_string(),
                "tool": call.tool_name.name,
                "namespace": call.tool_name.namespace,
                "duration_ms": call.duration.as_secs_f64() * 1000.0,
            }));
        }
    }

    fn say_progress(&self) {
        if let (Some(spinner), true) = (&self.spinner, self.progress) {
            let done = self.calls.done.load(Ordering::Relaxed);
            let begun = self.calls.begun.load(Ordering::Relaxed);
            let running = begun.saturating_sub(done);
            spinner.set_prefix(format!("{done} calls done, {running} running; "));
        }
    }

    /// Shows why the script failed.
    pub(crate) fn script_error(&self, text: &str, position: Option<SourcePosition>) {
        // The text has the line and help already; a person knows the script by its name.
        let text = &text.replace(MODULE_NAME, &self.script);
        if self.json {
            let position = position.map(|p| json!({"line": p.line, "column": p.column}));
            self.line(&json!({
                "type": "result",
                "status": "failed",
                "error": {"text": text, "position": position},
            }));
        }
        self.problem("error", text);
    }

    /// Takes the status line away.
    pub(crate) fn finish(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

fn write(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // The names are known beforehand: a link could lead to any file of the user.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
    options.open(path)?.write_all(bytes)
}

/// The media type and content of a `data:` URL. Content that claims to be base64
/// and is not is kept as it stands.
fn decode(url: &str) -> (String, Vec<u8>) {
    let rest = url.get("data:".len()..).unwrap_or_default();
    let (header, data) = rest.split_once(',').unwrap_or(("", rest));
    let mut fields = header.split(';');
    let media_type = fields
        .next()
        .filter(|kind| !kind.is_empty())
        .unwrap_or("text/plain")
        .to_ascii_lowercase();
    let bytes = if fields.any(|field| field.eq_ignore_ascii_case("base64")) {
        base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .unwrap_or_else(|_| data.as_bytes().to_vec())
    } else {
        data.as_bytes().to_vec()
    };
    (media_type, bytes)
}

/// A file name's ending for a media type. Only known ones, because the type is
/// the script's to choose.
fn extension(media_type: &str) -> &'static str {
    match media_type {
        "image/png" => "png",
        "image/jpeg" => "jpg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        "image/svg+xml" => "svg",
        "audio/wav" | "audio/x-wav" | "audio/wave" => "wav",
        "audio/mpeg" | "audio/mp3" => "mp3",
        "audio/ogg" => "ogg",
        "audio/flac" => "flac",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_url_is_its_type_and_bytes() {
        assert_eq!(
            decode("data:image/PNG;base64,AAEC"),
            ("image/png".to_owned(), vec![0, 1, 2])
        );
        assert_eq!(
            decode("data:,hi"),
            ("text/plain".to_owned(), b"hi".to_vec())
        );
        assert_eq!(
            decode("data:audio/wav;base64,!!"),
            ("audio/wav".to_owned(), b"!!".to_vec())
        );
    }
}
