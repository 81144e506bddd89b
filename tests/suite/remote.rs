//! Workers on other machines: the session stays, whatever becomes of the machine.
#![cfg(unix)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use code_mode_host::{
    CellOutcome, CellResponse, ExecuteRequest, Limits, Provider, RemoteHost, SessionError,
    SessionOptions, WorkerSource,
};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use crate::grpc_client::listening;
use crate::support::{Agent, error_text, exec, options, request, run, send, texts};

fn provider(url: &str) -> Provider {
    let options = options().worker(WorkerSource::Remote(RemoteHost::new(url)));
    Provider::new(options).expect("nothing to find")
}

async fn host(further: &[&str]) -> (Child, String) {
    listening("grpc://127.0.0.1:0", further).await
}

async fn session(provider: &Provider, agent: &Arc<Agent>) -> code_mode_host::Session {
    let session = provider.create_session(agent.clone()).await;
    session.expect("a session")
}

#[test]
fn cells_run_on_another_machine_with_the_tools_and_values_of_this_one() {
    run(async {
        let (_host, url) = host(&[]).await;
        let provider = provider(&url);
        let agent = Arc::new(Agent::default());
        let session = session(&provider, &agent).await;
        let source = "store('kept', {n: 1}); notify('up'); text(await tools.echo('x'.repeat(3e6)))";
        let response = exec(&session, source).await;
        assert_eq!(texts(&response)[0].len(), 3_000_000);
        assert_eq!(agent.notifications.lock().expect("no panic").len(), 1);
        let all =
            "text((await Promise.all(Array.from({length: 500}, (_, i) => tools.echo(i)))).length)";
        assert_eq!(texts(&exec(&session, all).await), ["500"]);
        assert_eq!(texts(&exec(&session, "text(load('kept').n)").await), ["1"]);
        assert_eq!(provider.workers().lost, 0);
        session.shutdown().await;
        provider.shutdown().await;
    });
}

#[test]
fn the_machines_own_limits_hold_whatever_a_provider_asks_for() {
    run(async {
        let (_host, url) = host(&["--max-cpu-time", "200", "--max-output", "1000"]).await;
        let provider = provider(&url);
        let limits = Limits::default()
            .max_cpu_time(None)
            .max_output_bytes(1 << 20);
        let options = SessionOptions::default().limits(limits);
        let session = provider
            .open_session(Arc::new(Agent::default()), options)
            .await;
        let session = session.expect("a session");
        let busy = exec(&session, "while (true) {}").await;
        let error = error_text(&busy).expect("an error");
        assert!(
            error.contains("CPU time limit of 200 ms exceeded"),
            "{error}"
        );
        let loud = exec(&session, "text('x'.repeat(2000))").await;
        let error = error_text(&loud).expect("an error");
        assert!(
            error.contains("output limit of 1000 bytes exceeded"),
            "{error}"
        );
        provider.shutdown().await;
    });
}

#[test]
fn a_host_that_is_not_there_or_refuses_is_named_and_its_token_is_not() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let tokens = directory.path().join("tokens");
        std::fs::write(&tokens, "a-token-that-nobody-guesses").expect("written");
        let (_host, url) = host(&["--token-file", tokens.to_str().expect("text")]).await;
        let unavailable = async |host: RemoteHost| {
            let options = options().worker(WorkerSource::Remote(host)).prewarmed(0);
            let provider = Provider::new(options).expect("nothing to find");
            match provider.create_session(Arc::new(Agent::default())).await {
                Err(SessionError::Unavailable(why)) => why.to_string(),
                other => panic!("not refused: {:?}", other.map(drop)),
            }
        };
        let nobody = unavailable(RemoteHost::new("http://127.0.0.1:1")).await;
        assert!(nobody.contains("http://127.0.0.1:1"), "{nobody}");
        assert!(nobody.contains("refused"), "{nobody}");
        let stranger = RemoteHost::new(&url).bearer_token("another-secret");
        let refused = unavailable(stranger).await;
        assert!(refused.contains("refuses"), "{refused}");
        assert!(!refused.contains("secret"), "{refused}");
        let clear = RemoteHost::new("http://192.0.2.1:1").bearer_token("another-secret");
        let clear = unavailable(clear).await;
        assert!(clear.contains("only to https://"), "{clear}");
        let options = options().worker(WorkerSource::Remote(
            RemoteHost::new(&url).bearer_token_file(&tokens),
        ));
        let provider = Provider::new(options).expect("nothing to find");
        let session = session(&provider, &Arc::default()).await;
        assert_eq!(texts(&exec(&session, "text(1)").await), ["1"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_token_that_is_withdrawn_takes_the_workers_it_borrowed_with_it() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let tokens = directory.path().join("tokens");
        std::fs::write(&tokens, "a-token-that-nobody-guesses").expect("written");
        let (_host, url) = host(&["--token-file", tokens.to_str().expect("text")]).await;
        let remote = RemoteHost::new(&url).bearer_token("a-token-that-nobody-guesses");
        let provider = Provider::new(options().worker(WorkerSource::Remote(remote)));
        let provider = provider.expect("nothing to find");
        let session = session(&provider, &Arc::default()).await;
        let busy = session.execute(request("while (true) {}")).await;
        let busy = busy.expect("admitted");
        std::fs::write(&tokens, "another-token-of-some-length").expect("written");
        let response = busy.outcome().await.expect("answered");
        let error = error_text(&response).expect("an error");
        assert!(error.contains("was lost"), "{error}");
        provider.shutdown().await;
    });
}

#[test]
fn a_worker_that_dies_there_says_how_here() {
    run(async {
        let (host, url) = host(&[]).await;
        let provider = provider(&url);
        let agent = Arc::new(Agent::default());
        let session = session(&provider, &agent).await;
        exec(&session, "store('kept', 1)").await;
        let waiting = session.execute(request("await tools.never()")).await;
        let waiting = waiting.expect("admitted");
        agent.called_once().await;
        for worker in crate::processes::descendants(host.id().expect("it runs")) {
            send(worker, Signal::KILL);
        }
        let response = waiting.outcome().await.expect("answered");
        let error = error_text(&response).expect("an error");
        assert!(error.contains("was killed by signal 9"), "{error}");
        assert_eq!(texts(&exec(&session, "text(load('kept'))").await), ["1"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_host_that_ends_in_order_takes_no_new_workers_and_ends_those_it_lent() {
    run(async {
        let (mut host, url) = host(&["--drain-time", "0"]).await;
        let provider = provider(&url);
        let session = session(&provider, &Arc::default()).await;
        let busy = session
            .execute(request("while (true) {}"))
            .await
            .expect("admitted");
        send(host.id().expect("it runs"), Signal::TERM);
        let response = busy.outcome().await.expect("answered");
        assert!(error_text(&response).is_some_and(|error| error.contains("was lost")));
        assert!(host.wait().await.expect("it ends").success());
        provider.shutdown().await;
    });
}

#[test]
fn a_spare_that_nobody_misses_does_not_hold_a_draining_host_up() {
    run(async {
        let (mut host, url) = host(&["--drain-time", "600000"]).await;
        let provider = provider(&url);
        while provider.workers().spare == 0 {
            tokio::task::yield_now().await;
        }
        send(host.id().expect("it runs"), Signal::TERM);
        assert!(host.wait().await.expect("it ends").success());
        provider.shutdown().await;
    });
}

#[test]
fn a_spare_whose_machine_lost_it_costs_no_cell() {
    run(async {
        let (host, url) = host(&[]).await;
        let provider = provider(&url);
        while provider.workers().spare == 0 {
            tokio::task::yield_now().await;
        }
        let workers = crate::processes::descendants(host.id().expect("it runs"));
        for worker in &workers {
            send(*worker, Signal::KILL);
        }
        // Its own spare may stay a name without memory until it is wanted.
        let gone = |pid: &u32| crate::processes::pss_kib(*pid) == 0;
        while !workers.iter().all(gone) {
            tokio::task::yield_now().await;
        }

        let session = session(&provider, &Arc::default()).await;

        let response = exec_past_loss(&session, "text(1)").await;
        assert_eq!(texts(&response), ["1"]);
        provider.shutdown().await;
    });
}

#[test]
fn a_host_that_ends_does_not_wait_for_a_provider_that_does_not_read() {
    run(async {
        let (mut host, url) = host(&["--drain-time", "0"]).await;
        let deaf = Arc::new(AtomicBool::new(false));
        let unread = Arc::new(AtomicU64::new(0));
        let relay = relay(url.replace("http://", ""), deaf.clone(), unread.clone()).await;
        let provider = provider(&relay);
        let session = session(&provider, &Arc::default()).await;
        assert_eq!(texts(&exec(&session, "text(1)").await), ["1"]);
        deaf.store(true, Ordering::Relaxed);
        // More than the connection and the host between them take.
        let loud =
            "for (;;) { text('x'.repeat(1e6)); await new Promise(done => setTimeout(done)); }";
        let _loud = session.execute(request(loud)).await.expect("admitted");
        while unread.load(Ordering::Relaxed) < 60_000 {
            tokio::task::yield_now().await;
        }

        send(host.id().expect("it runs"), Signal::TERM);

        // Well before the connection is given up because nothing answers.
        let ended = tokio::time::timeout(Duration::from_secs(30), host.wait()).await;
        assert!(ended.expect("not held up").expect("it ends").success());
        drop(provider);
    });
}

/// A way to a host by which nothing comes back once it is `deaf`; `unread` counts the bytes that wait
/// there then.
async fn relay(host: String, deaf: Arc<AtomicBool>, unread: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.expect("accepted");
            let host = TcpStream::connect(&host).await.expect("connected");
            let (deaf, unread) = (deaf.clone(), unread.clone());
            let (mut from_client, mut to_client) = client.into_split();
            let (from_host, mut to_host) = host.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_host).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 << 10];
                while !deaf.load(Ordering::Relaxed) {
                    from_host.readable().await.expect("open");
                    match from_host.try_read(&mut buffer) {
                        Ok(0) => return,
                        Ok(read) => to_client.write_all(&buffer[..read]).await.expect("open"),
                        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                    }
                }
                loop {
                    let waiting = rustix::io::ioctl_fionread(from_host.as_ref());
                    unread.fetch_max(waiting.unwrap_or(0), Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            });
        }
    });
    format!("http://{address}")
}

/// A balancer of connections: each goes to the next host that can be reached.
async fn balance(hosts: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let next = AtomicUsize::new(0);
        loop {
            let (mut client, _) = listener.accept().await.expect("accepted");
            for _ in 0..hosts.len() {
                let host = &hosts[next.fetch_add(1, Ordering::Relaxed) % hosts.len()];
                if let Ok(mut host) = TcpStream::connect(host).await {
                    tokio::spawn(async move {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut host).await;
                    });
                    break;
                }
            }
        }
    });
    format!("http://{address}")
}

#[test]
fn one_of_two_hosts_is_killed_under_load_and_every_session_goes_on_with_its_values() {
    const SESSIONS: usize = 8;
    const CELLS: usize = 12;
    run(async {
        let (mut first, first_url) = host(&[]).await;
        let (_second, second_url) = host(&[]).await;
        let hosts = [first_url, second_url];
        let hosts = hosts.map(|url| url.replace("http://", ""));
        let provider = Arc::new(provider(&balance(hosts.to_vec()).await));
        let done = Arc::new(AtomicUsize::new(0));
        let sessions = (0..SESSIONS).map(|number| {
            let (provider, done) = (provider.clone(), done.clone());
            tokio::spawn(async move {
                let agent = Arc::new(Agent::default());
                let session = session(&provider, &agent).await;
                exec_past_loss(&session, &format!("store('own', {number})")).await;
                let mut lost = 0;
                for cell in 0..CELLS {
                    let source = format!("text(load('own') + await tools.echo({cell}))");
                    lost += exec_past_loss_of(&session, &source, number + cell).await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                let closed = agent.closed();
                // Each of its cells was closed once.
                let mut once = closed.clone();
                once.sort();
                once.dedup();
                assert_eq!(once.len(), closed.len());
                session.shutdown().await;
                lost
            })
        });
        let sessions: Vec<_> = sessions.collect();
        while done.load(Ordering::Relaxed) < SESSIONS {
            tokio::task::yield_now().await;
        }
        first.kill().await.expect("killed");
        for session in sessions {
            session.await.expect("every answer was right");
        }
        assert!(provider.workers().lost > 0, "the first host served some");
        provider.shutdown().await;
    });
}

/// Runs a cell until its machine is not lost meanwhile; how often it was.
async fn exec_past_loss_of(
    session: &code_mode_host::Session,
    source: &str,
    wanted: usize,
) -> usize {
    let mut lost = 0;
    loop {
        let request = ExecuteRequest::new("call-1", source).tools(crate::support::agent_tools());
        let response = match session.execute(request).await {
            Ok(started) => started.outcome().await.expect("answered"),
            // Both ends of a death crossed.
            Err(SessionError::Unavailable(_)) => {
                lost += 1;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        match response.outcome() {
            Some(CellOutcome::Lost(_)) => lost += 1,
            _ => {
                assert_eq!(texts(&response), [wanted.to_string()], "{response:?}");
                return lost;
            }
        }
    }
}

async fn exec_past_loss(session: &code_mode_host::Session, source: &str) -> CellResponse {
    loop {
        let started = match session.execute(request(source)).await {
            Ok(started) => started,
            // Its next worker's machine is being lost just now.
            Err(SessionError::Unavailable(_)) => continue,
            Err(error) => panic!("{error}"),
        };
        let response = started.outcome().await.expect("answered");
        if !matches!(response.outcome(), Some(CellOutcome::Lost(_))) {
            return response;
        }
    }
}

#[test]
fn a_host_that_greets_wrongly_is_named_in_the_error() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let answering = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // An empty SETTINGS frame of HTTP/2, and then nothing.
                let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                });
            }
        });
        let worker = WorkerSource::Remote(RemoteHost::new(&url));
        let options = options()
            .worker(worker)
            .prewarmed(0)
            .handshake_timeout(Duration::from_millis(200));
        let provider = Provider::new(options).expect("nothing to find");
        let opened = provider.create_session(Arc::new(Agent::default())).await;
        let error = opened.expect_err("no worker can be had").to_string();
        assert!(
            error.contains(&format!("the host {url}: the worker did not answer")),
            "{error}"
        );
        answering.abort();
    });
}
