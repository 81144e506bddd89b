//! What `code-mode mcp` and its servers leave behind when they end: nothing.

use serde_json::json;

use crate::mcp_client::{Client, file_of, mad, path, texts};
use crate::support::run;

/// A launcher whose server ignores everything, and has left its group; it writes its number.
#[cfg(target_os = "linux")]
fn stubborn(folder: &tempfile::TempDir, how: &str) -> (String, std::path::PathBuf) {
    let place = folder.path().join("pid");
    let script = folder.path().join("stubborn.sh");
    let text = format!(
        "#!/bin/sh\ntrap '' TERM HUP INT\n\
         {how} sh -c 'trap \"\" TERM HUP INT; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 100; done' </dev/null >/dev/null 2>&1 &\n\
         exec {1}\n",
        place.display(),
        mad("plain"),
    );
    std::fs::write(&script, text).expect("written");
    (format!("sh {}", script.display()), place)
}

/// A client of a server that has left something behind; its number.
#[cfg(target_os = "linux")]
async fn client_of_stubborn(how: &str) -> (Client, u32) {
    let folder = tempfile::tempdir().expect("a folder");
    let (command, place) = stubborn(&folder, how);
    let mut client = Client::start(&["--server", &format!("s={command}")]);
    client.initialize(json!({})).await;
    client.exec("await tools.s__echo({})").await;
    let left = pid_in(&place).await;
    (client, left)
}

#[cfg(target_os = "linux")]
async fn pid_in(place: &std::path::Path) -> u32 {
    loop {
        if let Ok(text) = std::fs::read_to_string(place) {
            return text.trim().parse().expect("a number");
        }
        tokio::task::yield_now().await;
    }
}

/// Whether the guard of a program has a descriptor of a process.
#[cfg(target_os = "linux")]
fn is_seen_by_guard(program: u32, process: u32) -> bool {
    let line = format!("Pid:\t{process}\n");
    crate::processes::descendants(program).iter().any(|child| {
        let command = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        let is_guard = command.split(|byte| *byte == 0).nth(1) == Some(b"guard");
        let descriptors = std::fs::read_dir(format!("/proc/{child}/fdinfo"));
        let mut descriptors = descriptors.into_iter().flatten().flatten();
        is_guard
            && descriptors.any(|one| {
                std::fs::read_to_string(one.path()).is_ok_and(|info| info.contains(&line))
            })
    })
}

/// Waits until a process is gone.
#[cfg(target_os = "linux")]
async fn gone(pid: u32) {
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.trim().to_owned());
        rest.and_then(|rest| rest.chars().next())
    };
    while !matches!(state(), None | Some('Z' | 'X')) {
        tokio::task::yield_now().await;
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_servers_launcher_left_behind_ends_with_the_program() {
    // The second leaves its group and its environment as well.
    for how in ["", "setsid env -i PATH=/usr/bin:/bin"] {
        run(async {
            let (client, left) = client_of_stubborn(how).await;
            assert_eq!(client.leave().await, Some(0));
            gone(left).await;
        });
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_server_started_ends_where_the_program_is_killed() {
    for how in ["setsid", "setsid env -i PATH=/usr/bin:/bin"] {
        run(async {
            let (client, left) = client_of_stubborn(how).await;
            // Without a mark it is known once the guard has looked.
            while !is_seen_by_guard(client.pid(), left) {
                tokio::task::yield_now().await;
            }
            crate::support::send(client.pid(), rustix::process::Signal::KILL);
            gone(left).await;
        });
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_a_server_left_behind_ends_where_the_server_does() {
    run(async {
        let (mut client, left) = client_of_stubborn("setsid").await;
        client.exec("await tools.s__die({})").await;
        gone(left).await;
        client.leave().await;
    });
}

#[test]
fn a_signal_ends_a_check_that_waits_for_a_server() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("bound");
        let address = listener.local_addr().expect("an address");
        let server =
            json!({"mcpServers": {"s": {"type": "sse", "url": format!("http://{address}/sse")}}});
        let config = file_of(&server);
        let mut check = tokio::process::Command::new(crate::support::program())
            .args(["mcp", "check", "--config", path(&config)])
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("started");
        let (_silent, _) = listener.accept().await.expect("it connects");
        crate::support::send(check.id().expect("it runs"), rustix::process::Signal::TERM);
        assert_eq!(check.wait().await.expect("ended").code(), Some(143));
    });
}

#[cfg(unix)]
#[test]
fn a_signal_ends_everything_in_order() {
    run(async {
        let mut client = Client::before("plain", &[], json!({})).await;
        let endless = json!({"name": "exec", "arguments": {"code": "await tools.mad__slow({})"}});
        client.exec("await tools.mad__echo({})").await;
        client.begin("tools/call", endless).await;
        let pid = i32::try_from(client.pid()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
        assert_eq!(client.ended().await, Some(0));
    });
}

#[test]
fn a_cancelled_call_is_cancelled_at_its_server_which_then_ends_in_order() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let notes = folder.path().join("notes");
        let kind = format!("noting '{}'", notes.display());
        // Its end is that of the servers.
        let mut client = Client::before(&kind, &["--private"], json!({})).await;
        let heard = |what: &str| {
            let notes = std::fs::read_to_string(&notes).unwrap_or_default();
            notes.lines().any(|line| line == what)
        };
        // The program ends, and nobody waits for the call. Calls are made beside each other:
        // after one echo the other may not have been sent, and there is nothing to cancel.
        client
            .exec("tools.mad__slow({}); for (let i = 0; i < 50; i++) await tools.mad__echo({})")
            .await;
        while !heard("notifications/cancelled") {
            client.request("ping", json!({})).await;
        }
        assert_eq!(client.leave().await, Some(0));
        assert!(heard("end of input"));
    });
}

#[test]
fn a_cancelled_exec_ends_its_cell() {
    run(async {
        let mut client = Client::before("plain", &[], json!({})).await;
        client.exec("text(1)").await;
        let code = "notify('up'); await new Promise((f) => setTimeout(f, 1e9))";
        let endless = json!({"name": "exec", "arguments": {"code": code}});
        let id = client.begin("tools/call", endless).await;
        client.notified("notifications/message").await;
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        client.send(&cancel).await;
        // The session admits one cell at a time.
        let said = client.exec("text('next')").await;
        assert_eq!(said[0], "next");
        // The cancelled request watches its cell until that has ended.
        let said = loop {
            let said = texts(&client.call("wait", json!({"cell_id": "2"})).await);
            if !said[0].contains("has an active observer") {
                break said;
            }
        };
        assert!(
            said[0].contains("terminated")
                || said[0].contains("not found")
                || said[0].contains("no cell"),
            "{said:?}"
        );
        client.leave().await;
    });
}
