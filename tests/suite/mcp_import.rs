//! `code-mode mcp import`: the servers of other clients in one file.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::program;

/// A user with several clients.
struct User(tempfile::TempDir);

const CLAUDE: &str = r#"{"numStartups": 3, "mcpServers": {
  "git": {"command": "uvx", "args": ["mcp-server-git"]},
  "db": {"command": "db", "env": {"PASSWORD": "${DB_PASSWORD}"}},
  "mine": {"command": "/opt/code-mode", "args": ["mcp"]}
}, "projects": {}}"#;

const CODEX: &str = "model = \"m\" # mine\n\n[mcp_servers.repository]\ncommand = \"uvx\"\nargs = [\"mcp-server-git\"]\n\n[mcp_servers.db]\nurl = \"https://db.invalid/mcp\"\nbearer_token_env_var = \"DB\"\n";

const CODE: &str = r#"// servers
{"servers": {"files": {"type": "stdio", "command": "files", "args": ["${workspaceFolder}/x"],}, // here
  "bad": {"command": 7}}, "inputs": []}
"#;

const GOOSE: &str = "extensions:\n  developer:\n    type: builtin\n    enabled: true\n  tracker:\n    type: streamable_http\n    uri: https://tracker.invalid/mcp\n    enabled: true\n  off:\n    type: stdio\n    cmd: off\n    enabled: false\n";

impl User {
    fn new() -> Self {
        let user = Self(tempfile::tempdir().expect("a folder"));
        for (file, text) in [
            (".claude.json", CLAUDE),
            (".codex/config.toml", CODEX),
            ("project/.vscode/mcp.json", CODE),
            (".config/goose/config.yaml", GOOSE),
            (".gemini/settings.json", "{\"mcpServers\": "),
        ] {
            let path = user.path(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        user
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.0.path().join(file)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).expect("read")
    }

    fn import(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program());
        command
            .args(["mcp", "import"])
            .args(arguments)
            .current_dir(self.path("project"))
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("CODEX_HOME");
        command.output().expect("run")
    }

    fn servers(&self) -> Value {
        serde_json::from_str(&self.read(".config/code-mode/servers.json")).expect("JSON")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn servers_of_all_clients_are_written_once_and_what_is_left_out_is_named() {
    let user = User::new();
    let output = user.import(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let project = user.path("project").canonicalize().expect("there");
    let expected = json!({"mcpServers": {
        "git": {"command": "uvx", "args": ["mcp-server-git"]},
        "db": {"command": "db", "env": {"PASSWORD": "${DB_PASSWORD}"}},
        "db-2": {"url": "https://db.invalid/mcp", "bearer_token_env_var": "DB"},
        "tracker": {"url": "https://tracker.invalid/mcp"},
        "files": {"type": "stdio", "command": "files", "args": [format!("{}/x", project.display())]},
    }});
    assert_eq!(user.servers(), expected);
    let said = said(&output);
    for part in [
        "off of goose",
        "developer of goose",
        "bad of VS Code",
        "not JSON at line 1",
        "Codex (",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let file = user.path(".config/code-mode/servers.json");
        let mode = file.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let entries = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        entries.contains("Claude Code") && entries.contains("servers.json"),
        "{entries}"
    );
    // Nothing of the clients has changed, and a second import is the same.
    assert_eq!(user.read(".claude.json"), CLAUDE);
    assert_eq!(user.import(&[]).status.code(), Some(0));
    assert_eq!(user.servers(), expected);
}

#[test]
fn an_installation_changes_the_servers_alone_and_is_taken_back() {
    let user = User::new();
    let output = user.import(&["--install"]);
    // The file of goose is changed by hand.
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("changed by hand"),
        "{}",
        said(&output)
    );
    let claude: Value = serde_json::from_str(&user.read(".claude.json")).expect("JSON");
    assert_eq!(claude["numStartups"], 3);
    let servers = claude["mcpServers"].as_object().expect("an object");
    let names: Vec<_> = servers.keys().map(String::as_str).collect();
    assert_eq!(names, ["mine", "code-mode"]);
    let args = &servers["code-mode"]["args"];
    assert_eq!((&args[0], &args[1]), (&json!("mcp"), &json!("--config")));
    let codex = user.read(".codex/config.toml");
    assert!(codex.starts_with("model = \"m\" # mine\n"), "{codex}");
    assert!(
        codex.contains("[mcp_servers.code-mode]") && !codex.contains("repository"),
        "{codex}"
    );
    assert_eq!(user.read("project/.vscode/mcp.json"), CODE);
    assert_eq!(user.read(".claude.json.before-code-mode"), CLAUDE);
    // Not twice: the copy is what the client had before.
    let again = user.import(&["--install"]);
    assert_eq!(user.read(".claude.json.before-code-mode"), CLAUDE);
    assert_eq!(again.status.code(), Some(1));
    let output = user.import(&["--undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(user.read(".claude.json"), CLAUDE);
    assert_eq!(user.read(".codex/config.toml"), CODEX);
    assert!(!Path::new(&user.path(".claude.json.before-code-mode")).exists());
    assert!(said(&user.import(&["--undo"])).contains("no client's file was changed"));
}

#[test]
fn a_second_import_keeps_the_file_of_the_first_as_a_person_has_changed_it() {
    let user = User::new();
    user.import(&[]);
    let mine = json!({"note": 1, "mcpServers": {
        "git": {"command": "uvx", "args": ["mcp-server-git"], "disabled": true},
        "mine": {"command": "mine", "timeout": 5},
    }});
    let file = ".config/code-mode/servers.json";
    std::fs::write(user.path(file), mine.to_string()).expect("written");
    assert_eq!(user.import(&[]).status.code(), Some(0));
    let now = user.servers();
    assert_eq!(now["note"], 1);
    assert_eq!(now["mcpServers"]["mine"], mine["mcpServers"]["mine"]);
    assert_eq!(now["mcpServers"]["git"], mine["mcpServers"]["git"]);
    assert!(now["mcpServers"]["db"].is_object(), "{now}");
    for text in ["{\"mcpServers\": {\"a\": }}", "my diary", "[]", "\u{fe}"] {
        std::fs::write(user.path(file), text).expect("written");
        let output = user.import(&[]);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            said(&output).contains("stays as it is"),
            "{}",
            said(&output)
        );
        assert_eq!(user.read(file), text);
    }
}

#[test]
fn an_entry_of_the_same_name_keeps_what_it_has() {
    let user = User::new();
    let own = r#"{"mcpServers": {"a": {"command": "a"}, "code-mode": {"command": "code-mode", "args": ["mcp", "--policy", "/p.json"]}}}"#;
    std::fs::write(user.path(".claude.json"), own).expect("written");
    user.import(&["--install"]);
    let claude: Value = serde_json::from_str(&user.read(".claude.json")).expect("JSON");
    let args = claude["mcpServers"]["code-mode"]["args"]
        .as_array()
        .expect("words");
    assert_eq!(
        args[..3],
        [json!("mcp"), json!("--policy"), json!("/p.json")]
    );
    assert_eq!(args[3], "--config");
    assert!(claude["mcpServers"].get("a").is_none(), "{claude}");
    user.import(&["--undo"]);
    let foreign = r#"{"mcpServers": {"a": {"command": "a"}, "code-mode": {"command": "other", "disabled": true}}}"#;
    std::fs::write(user.path(".claude.json"), foreign).expect("written");
    let output = user.import(&["--install"]);
    assert!(
        said(&output).contains("has another entry of the name"),
        "{}",
        said(&output)
    );
    assert_eq!(user.read(".claude.json"), foreign);
}

#[test]
fn servers_with_other_tools_are_not_the_same() {
    let user = User::new();
    let with = |more: Value| {
        let mut entry = json!({"command": "fs", "args": []});
        entry
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        json!({"mcpServers": {"fs": entry}}).to_string()
    };
    std::fs::write(user.path(".claude.json"), with(json!({}))).expect("written");
    let limited = with(json!({"excludeTools": ["delete_all"], "trust": true}));
    std::fs::write(user.path(".gemini/settings.json"), limited).expect("written");
    user.import(&[]);
    let servers = user.servers();
    assert_eq!(
        servers["mcpServers"]["fs-2"]["excludeTools"],
        json!(["delete_all"])
    );
}

#[cfg(unix)]
#[test]
fn a_project_cannot_have_files_outside_of_it_changed_or_the_import_hung() {
    let user = User::new();
    let victim = user.path(".bashrc");
    std::fs::write(&victim, "mine").expect("written");
    let project = user.path("project");
    std::os::unix::fs::symlink(&victim, project.join(".mcp.json")).expect("linked");
    std::fs::write(project.join(".mcp.json.before-code-mode"), "echo PWNED").expect("written");
    let output = user.import(&["--undo"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(user.read(".bashrc"), "mine");
    std::fs::remove_file(project.join(".mcp.json")).expect("removed");
    let pipe = project.join(".mcp.json");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .expect("run")
            .success()
    );
    let zero = json!({"servers": {
        "zero": {"command": "x", "envFile": "/dev/zero"},
        "long": {"command": "x", "timeout": 1e300},
    }});
    std::fs::write(project.join(".vscode/mcp.json"), zero.to_string()).expect("written");
    let output = user.import(&["--dry-run"]);
    let said = said(&output);
    for part in ["not a file", "envFile", "timeout: not a number"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn hostile_files_of_clients_are_noted_and_the_others_imported() {
    let user = User::new();
    std::fs::write(user.path(".claude.json"), "[".repeat(100_000)).expect("written");
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nextensions: *b\n";
    std::fs::write(user.path(".config/goose/config.yaml"), bomb).expect("written");
    let odd = json!({"mcpServers": {"a\u{1b}[2J\nb": {"command": 7}, "fine": {"command": "fine"}, "n": null, "l": []}});
    std::fs::create_dir_all(user.path(".cursor")).expect("made");
    std::fs::write(user.path(".cursor/mcp.json"), odd.to_string()).expect("written");
    let output = user.import(&["--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(!said(&output).contains('\u{1b}'), "{}", said(&output));
    let servers: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(servers["mcpServers"]["fine"], json!({"command": "fine"}));
    assert!(!user.path(".config/code-mode").exists());
}
