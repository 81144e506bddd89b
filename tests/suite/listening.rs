//! A worker that listens on a socket meets whoever connects to it.
#![cfg(unix)]

use std::sync::Arc;

use code_mode_host::SessionError;
use code_mode_protocol::wire::native::{FromWorker, ToWorker, VERSION};
use code_mode_protocol::wire::reader::{MaxMessage, MessageReader};
use tokio::io::AsyncWriteExt;

use crate::support::{Agent, exec, program, provider_at, run, texts};

/// A worker that listens, and its socket. What it logs is in `worker.log` beside.
pub async fn listening(folder: &tempfile::TempDir) -> (tokio::process::Child, std::path::PathBuf) {
    listening_with(folder, &[]).await
}

/// The same with further arguments.
pub async fn listening_with(
    folder: &tempfile::TempDir,
    arguments: &[&str],
) -> (tokio::process::Child, std::path::PathBuf) {
    let socket = folder.path().join("worker.sock");
    let log = std::fs::File::create(folder.path().join("worker.log")).expect("created");
    let child = tokio::process::Command::new(program())
        .arg("worker")
        .arg("--listen")
        .arg(&socket)
        .args(arguments)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    (child, socket)
}

async fn connected(folder: &tempfile::TempDir) -> (tokio::process::Child, tokio::net::UnixStream) {
    let (child, socket) = listening(folder).await;
    let stream = tokio::net::UnixStream::connect(&socket)
        .await
        .expect("the socket takes connections");
    (child, stream)
}

/// The bytes of a message.
pub fn framed(message: ToWorker) -> Vec<u8> {
    let parts = message.encode().expect("encodes").into_parts();
    parts.flat_map(|part| part.to_vec()).collect()
}

fn greeting(versions: Vec<u32>, required_capabilities: Vec<String>) -> Vec<u8> {
    framed(ToWorker::Hello {
        versions,
        required_capabilities,
    })
}

#[test]
fn a_worker_that_listens_serves_one_provider() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (_child, socket) = listening(&folder).await;
        let provider = provider_at(socket);
        let agent = Arc::new(Agent::default());
        let session = provider
            .create_session(agent.clone())
            .await
            .expect("opened");
        assert_eq!(texts(&exec(&session, "text(1)").await), ["1"]);
        let second = provider.create_session(agent).await;
        let second = match second {
            Ok(session) => session.execute(crate::support::request("")).await.map(drop),
            Err(error) => Err(error),
        };
        let Err(SessionError::Unavailable(why)) = second else {
            panic!("a second session in one worker");
        };
        assert!(why.to_string().contains("cannot connect"), "{why}");
        provider.shutdown().await;
    });
}

#[test]
#[cfg(target_os = "linux")]
fn the_socket_of_a_listening_worker_is_its_users_alone_and_gone_once_used() {
    use std::os::unix::fs::PermissionsExt;
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (_child, socket) = listening(&folder).await;
        let mode = || std::fs::metadata(&socket).map(|m| m.permissions().mode() & 0o777);
        assert_eq!(mode().ok(), Some(0o600));
        let _first = tokio::net::UnixStream::connect(&socket)
            .await
            .expect("accepted");
        while socket.exists() {
            tokio::task::yield_now().await;
        }
        assert!(tokio::net::UnixStream::connect(&socket).await.is_err());
    });
}

#[test]
fn a_wrong_handshake_is_rejected_with_the_reason() {
    run(async {
        for (bytes, reason) in [
            (greeting(vec![99], vec![]), "no version in common"),
            (
                greeting(vec![VERSION], vec!["flying".to_owned()]),
                "unknown capability flying",
            ),
            (
                framed(ToWorker::Shutdown),
                "the first message must be a greeting",
            ),
            (vec![3, 0, 0, 0, 0xff, 0xff, 0xff], "malformed message"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let (mut child, mut stream) = connected(&folder).await;
            stream.write_all(&bytes).await.expect("written");
            let max = MaxMessage {
                frame: 1 << 16,
                texts: 0,
            };
            let mut messages = MessageReader::<_, FromWorker>::new(stream, max);
            match messages.next().await {
                Ok(Some(FromWorker::Rejected { reason: got })) => {
                    assert!(got.contains(reason), "{got}");
                }
                other => panic!("{reason}: {other:?}"),
            }
            assert!(child.wait().await.expect("a status").success());
            // The sandbox lets it write to the log it was started with.
            let log = std::fs::read_to_string(folder.path().join("worker.log")).expect("read");
            assert!(log.contains(reason), "{log}");
        }
    });
}

#[test]
fn a_worker_started_by_hand_without_a_connection_says_what_it_needs() {
    let output = std::process::Command::new(program())
        .arg("worker")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "code-mode worker: standard input is not a provider's connection; --listen SOCKET waits for one\n"
    );
}

#[test]
fn an_oversize_or_truncated_frame_ends_the_worker_and_nothing_else() {
    run(async {
        for bytes in [
            0xffff_ffffu32.to_le_bytes().to_vec(),
            vec![100, 0, 0, 0, 1, 2, 3],
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let (mut child, mut stream) = connected(&folder).await;
            stream
                .write_all(&greeting(vec![VERSION], vec![]))
                .await
                .expect("written");
            stream.write_all(&bytes).await.expect("written");
            stream.shutdown().await.expect("closed");
            child.wait().await.expect("it ends");
        }
    });
}
