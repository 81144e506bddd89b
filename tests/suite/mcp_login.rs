//! Logins of `code-mode mcp` to servers over HTTP, with an authorization server that runs here.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::mcp_client::{Client, file_of, path};
use crate::support::{program, run};

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/login_server.py")
}

/// The server, and a user with a browser and no login.
struct World {
    server: Child,
    base: String,
    folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl World {
    fn new() -> Self {
        let mut server = Command::new("python3")
            .arg(script())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut port = String::new();
        BufReader::new(server.stdout.take().expect("a pipe"))
            .read_line(&mut port)
            .expect("a port");
        let folder = tempfile::tempdir().expect("a folder");
        let browser = folder.path().join("browser");
        let line = format!(
            "#!/bin/sh\nexec python3 '{}' fetch \"$1\"\n",
            script().display()
        );
        std::fs::write(&browser, line).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&browser, mode).expect("executable");
        Self {
            server,
            base: format!("http://127.0.0.1:{}", port.trim()),
            folder,
        }
    }

    fn url(&self) -> String {
        format!("{}/mcp", self.base)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .arg("mcp")
            .args(arguments)
            .env("XDG_STATE_HOME", self.folder.path())
            .env("BROWSER", self.folder.path().join("browser"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Logs in with the browser.
    fn log_in(&self, more: &[&str]) -> Output {
        let url = self.url();
        let mut arguments = vec!["login", &url];
        arguments.extend(more);
        self.command(&arguments).output().expect("run")
    }

    /// Starts a login, and returns its process, the address of its page and its standard error.
    fn begin(&self) -> (Child, String, BufReader<std::process::ChildStderr>) {
        let url = self.url();
        let mut command = self.command(&["login", &url, "--no-browser"]);
        let mut login = command.stdin(Stdio::piped()).spawn().expect("starts");
        let mut said = BufReader::new(login.stderr.take().expect("a pipe"));
        let mut line = String::new();
        while !line.trim().starts_with("http") {
            line.clear();
            let read = said.read_line(&mut line).expect("UTF-8");
            assert_ne!(read, 0, "the login ended");
        }
        (login, line.trim().to_owned(), said)
    }

    fn fetch(&self, address: &str, body: Option<&Value>) -> (String, String) {
        let mut command = Command::new("python3");
        command.arg(script()).args(["fetch", address]);
        command.args(body.map(Value::to_string));
        let output = command.output().expect("run");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        let (last, page) = said.split_once('\n').expect("an address and a page");
        (last.to_owned(), page.to_owned())
    }

    fn control(&self, change: Value) {
        self.fetch(&format!("{}/control", self.base), Some(&change));
    }

    fn counts(&self) -> Value {
        let (_, counts) = self.fetch(&format!("{}/counts", self.base), None);
        serde_json::from_str(&counts).expect("JSON")
    }

    async fn client(&self) -> Client {
        let server = format!("s={}", self.url());
        let arguments = ["--private", "--server", &server];
        let mut client = Client::start_in(&arguments, self.folder.path());
        client.initialize(json!({})).await;
        client
    }

    fn files(&self) -> Vec<PathBuf> {
        let folder = self.folder.path().join("code-mode/logins");
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let files = entries.map(|entry| entry.expect("an entry").path());
        files
            .filter(|file| file.extension().is_some_and(|end| end == "json"))
            .collect()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const READ: &str = "text(await tools.s__read({}))";

#[test]
fn a_login_is_kept_for_its_owner_alone_until_it_is_forgotten() {
    run(async {
        let world = World::new();
        let output = world.log_in(&[]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(said(&output).contains("scopes: read"), "{}", said(&output));
        let files = world.files();
        assert_eq!(files.len(), 1);
        let mode = |path: &std::path::Path| {
            let metadata = path.metadata().expect("metadata");
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
        };
        assert_eq!(mode(&files[0]), 0o600);
        assert_eq!(mode(files[0].parent().expect("a folder")), 0o700);
        let mut client = world.client().await;
        let texts = client.exec(READ).await;
        assert!(texts[0].contains("done"), "{texts:?}");
        client.leave().await;
        let config = file_of(&json!({"mcpServers": {"s": {"url": world.url()}}}));
        let listed = world
            .command(&["login", "--config", path(&config)])
            .output();
        let listed = listed.expect("run").stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        assert!(listed.contains("s  logged in, renewed in"), "{listed}");
        let output = world
            .command(&["logout", "--config", path(&config), "s"])
            .output();
        assert!(said(&output.expect("run")).contains("logged out of s"));
        assert!(world.files().is_empty());
    });
}

#[test]
fn twenty_calls_at_once_of_two_gateways_renew_a_token_once() {
    run(async {
        let world = World::new();
        assert!(world.log_in(&[]).status.success());
        let (mut one, mut two) = (world.client().await, world.client().await);
        for client in [&mut one, &mut two] {
            let texts = client.exec(READ).await;
            assert!(texts[0].contains("done"), "{texts:?}");
        }
        world.control(json!({"end_tokens": true}));
        let code = "const all = await Promise.all(Array.from({length: 10}, () => tools.s__read({}))); text(all.length)";
        let (one_said, two_said) = tokio::join!(one.exec(code), two.exec(code));
        assert_eq!((&*one_said[0], &*two_said[0]), ("10", "10"));
        let counts = world.counts();
        assert_eq!(counts["renewed"], 1, "{counts}");
        assert_eq!(counts["refused"], 0, "{counts}");
        one.leave().await;
        two.leave().await;
    });
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    run(async {
        let world = World::new();
        world.control(json!({"expires_in": 0}));
        assert!(world.log_in(&[]).status.success());
        world.control(json!({"expires_in": 3600}));
        let mut client = world.client().await;
        let texts = client.exec(READ).await;
        assert!(texts[0].contains("done"), "{texts:?}");
        let counts = world.counts();
        assert_eq!(
            (&counts["renewed"], &counts["refused"]),
            (&json!(1), &json!(0))
        );
        client.leave().await;
    });
}

#[test]
fn a_call_without_a_login_names_the_command_and_the_gateway_notices_the_login() {
    run(async {
        let world = World::new();
        let mut client = world.client().await;
        let code = "try { await tools.s__read({}) } catch (e) { text(e.message) }";
        let texts = client.exec("text(ALL_TOOLS.length)").await;
        assert_eq!(texts[0], "0");
        let output = world.log_in(&[]);
        assert!(output.status.success(), "{}", said(&output));
        while client.exec("text(ALL_TOOLS.length)").await[0] == "0" {}
        assert!(client.exec(READ).await[0].contains("done"));
        // The authorization server takes everything back.
        world.control(json!({"revoke": true}));
        let texts = client.exec(code).await;
        assert!(
            texts[0].contains("the server s needs a login: `code-mode mcp login s`"),
            "{texts:?}"
        );
        assert!(world.files().is_empty(), "the login is of no use any more");
        client.leave().await;
        let config = file_of(&json!({"mcpServers": {"s": {"url": world.url()}}}));
        let checked = world
            .command(&["check", "--config", path(&config)])
            .output();
        let checked = String::from_utf8(checked.expect("run").stdout).expect("UTF-8");
        assert!(
            checked.contains("needs a login: `code-mode mcp login s`"),
            "{checked}"
        );
    });
}

#[test]
fn a_call_that_needs_more_scopes_names_them_and_a_login_keeps_those_it_had() {
    run(async {
        let world = World::new();
        assert!(world.log_in(&[]).status.success());
        let mut client = world.client().await;
        let code =
            "try { await tools.s__write({}); text('written') } catch (e) { text(e.message) }";
        let texts = client.exec(code).await;
        let command = "`code-mode mcp login s --scope write`";
        assert!(texts[0].contains(command), "{texts:?}");
        let output = world.log_in(&["--scope", "write"]);
        assert!(
            said(&output).contains("scopes: read write"),
            "{}",
            said(&output)
        );
        assert_eq!(client.exec(code).await[0], "written");
        client.leave().await;
    });
}

#[test]
fn an_answer_with_another_state_ends_nothing_and_the_right_one_does() {
    let world = World::new();
    let (mut login, page, _said) = world.begin();
    let page = url::Url::parse(&page).expect("an address");
    let parameter = |name: &str| {
        let mut pairs = page.query_pairs();
        let (_, value) = pairs.find(|(key, _)| key == name).expect("there");
        value.into_owned()
    };
    let callback = parameter("redirect_uri");
    assert!(callback.starts_with("http://127.0.0.1:"), "{callback}");
    for query in [
        "code=stolen&state=other",
        "code=stolen",
        "error=access_denied",
        "",
    ] {
        let (_, answer) = world.fetch(&format!("{callback}?{query}"), None);
        assert!(
            answer.contains("belongs to no login that runs now"),
            "{answer}"
        );
    }
    let (_, answer) = world.fetch(page.as_str(), None);
    assert!(answer.contains("You can close this page"), "{answer}");
    assert_eq!(login.wait().expect("ended").code(), Some(0));
    assert_eq!(world.counts()["exchanged"], 1);
}

#[test]
fn a_person_without_a_browser_pastes_the_last_address() {
    let world = World::new();
    let (mut login, page, mut said) = world.begin();
    let mut input = login.stdin.take().expect("a pipe");
    writeln!(input, "http://127.0.0.1/callback?code=x&state=y").expect("written");
    let mut line = String::new();
    while !line.contains("not the address of this login") {
        line.clear();
        assert_ne!(said.read_line(&mut line).expect("UTF-8"), 0);
    }
    let last = Command::new("python3")
        .arg(script())
        .args(["location", &page])
        .output()
        .expect("run");
    input.write_all(&last.stdout).expect("written");
    assert_eq!(login.wait().expect("ended").code(), Some(0));
    assert_eq!(world.files().len(), 1);
}

#[test]
fn a_login_that_was_refused_says_so() {
    let world = World::new();
    world.control(json!({"denies": "access_denied"}));
    let output = world.log_in(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("the login was refused: access_denied"),
        "{}",
        said(&output)
    );
    assert!(world.files().is_empty());
}

#[test]
fn tokens_go_to_nobody_who_is_not_the_server_of_the_login() {
    run(async {
        let world = World::new();
        let plain = json!({"token_endpoint": "http://192.0.2.1/token"});
        world.control(json!({"metadata": plain}));
        let output = world.log_in(&[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            said(&output).contains("neither https nor on this machine"),
            "{}",
            said(&output)
        );
        world.control(json!({"metadata": {}}));
        assert!(world.log_in(&[]).status.success());
        // The server names another authorization server for the renewal.
        let thief = World::new();
        let stolen = json!({"issuer": world.base, "token_endpoint": "http://192.0.2.1/token"});
        world.control(json!({"end_tokens": true, "metadata": stolen}));
        let mut client = world.client().await;
        client.exec("text(1)").await;
        client.leave().await;
        assert_eq!(world.files().len(), 1);
        // It sends calls to another address.
        world.control(json!({"metadata": {}, "redirect_calls": thief.url()}));
        let mut client = world.client().await;
        client.exec("text(1)").await;
        client.leave().await;
        assert_eq!(thief.counts()["seen"], json!([]));
    });
}

#[test]
fn a_server_that_names_a_thief_as_its_authorization_server_gives_it_nothing() {
    run(async {
        let (world, thief) = (World::new(), World::new());
        assert!(world.log_in(&[]).status.success());
        // The thief takes the honest server's name, and names itself as the place for tokens.
        let page = |path: &str| format!("{}/{path}", world.base);
        let claims = json!({
            "issuer": world.base,
            "authorization_endpoint": page("authorize"),
            "registration_endpoint": page("register"),
            "token_endpoint": format!("{}/token", thief.base),
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
        });
        thief.control(json!({"metadata": claims}));
        let named = format!("{}/.well-known/whatever", thief.base);
        world.control(json!({"end_tokens": true, "authorization_server": named}));
        let mut client = world.client().await;
        client.exec("text(1)").await;
        client.leave().await;
        assert_eq!(
            thief.counts()["refused"],
            0,
            "a refresh token went to the thief"
        );
        assert_eq!(world.files().len(), 1, "the login is kept");
        let output = world.log_in(&[]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains("are not those of"),
            "{}",
            said(&output)
        );
        assert_eq!(thief.counts()["refused"], 0, "a code went to the thief");
    });
}

#[test]
fn a_server_is_back_once_its_authorization_server_is() {
    run(async {
        let world = World::new();
        assert!(world.log_in(&[]).status.success());
        world.control(json!({"end_tokens": true, "renewal_status": 500}));
        let mut client = world.client().await;
        assert_eq!(client.exec("text(ALL_TOOLS.length)").await[0], "0");
        world.control(json!({"renewal_status": null}));
        while client.exec("text(ALL_TOOLS.length)").await[0] == "0" {}
        assert!(client.exec(READ).await[0].contains("done"));
        client.leave().await;
    });
}

#[test]
fn the_headers_of_a_command_are_shown_to_the_server_and_to_nobody_else() {
    run(async {
        let world = World::new();
        assert!(world.log_in(&[]).status.success());
        let saved = std::fs::read_to_string(&world.files()[0]).expect("read");
        let saved: Value = serde_json::from_str(&saved).expect("JSON");
        let token = saved["credentials"]["token_response"]["access_token"].as_str();
        let printed = json!({"Authorization": format!("Bearer {}", token.expect("a token"))});
        let answer = world.folder.path().join("headers.json");
        std::fs::write(&answer, printed.to_string()).expect("written");
        let helper = format!(
            "test \"$CLAUDE_CODE_MCP_SERVER_NAME\" = s && cat '{}'",
            answer.display()
        );
        let entry = json!({"url": world.url(), "headers": {"X-One": "1"}, "headersHelper": helper});
        let config = file_of(&json!({"mcpServers": {"s": entry}}));
        let arguments = ["--private", "--config", path(&config)];
        let elsewhere = tempfile::tempdir().expect("a folder");
        let mut client = Client::start_in(&arguments, elsewhere.path());
        client.initialize(json!({})).await;
        let texts = client.exec(READ).await;
        assert!(texts[0].contains("done"), "{texts:?}");
        let seen = &world.counts()["seen"][0];
        assert_eq!(seen["x-one"], "1", "{seen}");
        client.leave().await;
    });
}
