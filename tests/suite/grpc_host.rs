//! A gRPC host that others can reach: authentication, limits and the drain.
#![cfg(unix)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

use crate::grpc_client::wire::{OpenSessionRequest, SessionEvent};
use crate::grpc_client::{CodeModeHostClient, Host, http, listening, next, outcome, texts};
use crate::support::{program, run, send};

pub(crate) const TOKEN: &str = "a-token-that-nobody-guesses";

/// The lease of a session that a client with this token opens.
async fn lease_of(
    channel: Channel,
    token: Option<&str>,
) -> Result<Streaming<SessionEvent>, Status> {
    let mut request = tonic::Request::new(OpenSessionRequest::default());
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("text");
        request.metadata_mut().insert("authorization", value);
    }
    let opened = CodeModeHostClient::new(channel).open_session(request).await;
    Ok(opened?.into_inner())
}

/// The first answer to a client that opens a session.
async fn opens(channel: Channel, token: Option<&str>) -> Result<(), Status> {
    let mut lease = lease_of(channel, token).await?;
    lease.message().await.map(|_| ())
}

/// Certificates of a host and of a client, by one authority, as files.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut authority = rcgen::CertificateParams::new([]).expect("parameters");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).expect("signed");
        let issuer = rcgen::Issuer::new(authority, key);
        let made = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        made.write("ca.pem", certificate.pem());
        for name in ["host", "client"] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let names = vec!["localhost".to_owned()];
            let parameters = rcgen::CertificateParams::new(names).expect("parameters");
            let certificate = parameters.signed_by(&key, &issuer).expect("signed");
            made.write(&format!("{name}.pem"), certificate.pem());
            made.write(&format!("{name}.key"), key.serialize_pem());
        }
        made
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    /// A host that speaks TLS and asks for one of the tokens in the file `tokens`.
    async fn guarded_host(&self) -> (tokio::process::Child, String) {
        let [certificate, key, tokens] =
            ["host.pem", "host.key", "tokens"].map(|name| self.text(name));
        let options = ["--tls-cert", &certificate, "--tls-key", &key];
        let options = [&options[..], &["--token-file", &tokens]].concat();
        listening("grpc://127.0.0.1:0", &options).await
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("there")
    }

    /// A client's configuration, with or without a certificate.
    fn tls(&self, has_certificate: bool) -> ClientTlsConfig {
        let config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.read("ca.pem")))
            .domain_name("localhost");
        match has_certificate {
            true => config.identity(Identity::from_pem(
                self.read("client.pem"),
                self.read("client.key"),
            )),
            false => config,
        }
    }
}

pub(crate) async fn channel(
    address: &str,
    tls: Option<ClientTlsConfig>,
) -> Result<Channel, String> {
    let mut endpoint = Endpoint::from_shared(address.to_owned()).expect("a URL");
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).expect("a configuration");
    }
    endpoint.connect().await.map_err(|error| error.to_string())
}

#[test]
fn beyond_this_machine_it_needs_tls_and_authentication_or_to_be_told_otherwise() {
    let certificates = Certificates::new();
    certificates.write("tokens", TOKEN);
    let [certificate, key, tokens] =
        ["host.pem", "host.key", "tokens"].map(|name| certificates.text(name));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let token = ["--token-file", &tokens];
    let exposed = "others than this machine can reach this address";
    for (listen, options, said) in [
        ("grpc://0.0.0.0:0", &[][..], exposed),
        ("grpc://[::]:0", &tls[..], exposed),
        ("grpc://0.0.0.0:0", &token[..], "a bearer token without TLS"),
        (
            "unix:/x",
            &tls[..],
            "--tls-cert needs --listen grpc://IP:PORT",
        ),
        ("grpc+stdio://", &token[..], "--token-file needs --listen"),
        ("stdio", &token[..], "--token-file needs --listen"),
        (
            "stdio",
            &["--ops-listen", "127.0.0.1:0"],
            "--ops-listen needs",
        ),
        (
            "grpc://0.0.0.0:0",
            &["--token-file", "/none"],
            "cannot read /none",
        ),
    ] {
        let options = match said.starts_with("cannot read") {
            true => [options, &tls].concat(),
            false => options.to_vec(),
        };
        let output = Command::new(program())
            .args(["serve", "--listen", listen])
            .args(&options)
            .output()
            .expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{listen} {options:?}: {error}");
        assert_eq!(output.status.code(), Some(2));
        assert!(!error.contains(TOKEN));
    }
    run(async {
        let both = [&tls[..], &token[..]].concat();
        for options in [&both[..], &["--unprotected"]] {
            let (_child, address) = listening("grpc://0.0.0.0:0", options).await;
            assert!(address.contains("://0.0.0.0:"), "{address}");
        }
    });
}

#[test]
fn only_who_knows_a_token_is_let_in_and_tokens_can_be_changed() {
    let certificates = Certificates::new();
    certificates.write("tokens", format!("{TOKEN}\nanother-token-of-some-length\n"));
    run(async {
        let (_child, address) = certificates.guarded_host().await;
        assert!(address.starts_with("https://"), "{address}");
        let plain = address.replace("https", "http");
        let channel_of = channel(&address, Some(certificates.tls(false))).await;
        let channel_of = channel_of.expect("connected");
        for token in [TOKEN, "another-token-of-some-length"] {
            opens(channel_of.clone(), Some(token))
                .await
                .expect("let in");
        }
        for token in [None, Some(""), Some("wrong"), Some(&TOKEN[1..])] {
            let refused = opens(channel_of.clone(), token).await.expect_err("refused");
            assert_eq!(refused.code(), Code::Unauthenticated, "{token:?}");
        }
        // Without TLS there is nobody to talk to.
        if let Ok(channel) = channel(&plain, None).await {
            opens(channel, Some(TOKEN)).await.expect_err("no answer");
        }
        // Health checks carry no token.
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel_of.clone());
        let asked = tonic_health::pb::HealthCheckRequest::default();
        let answered = health.check(asked).await.expect("answered").into_inner();
        assert_eq!(answered.status, 1);
        // The file is looked at again within a second.
        certificates.write("tokens", "a-new-token-of-some-length");
        while opens(channel_of.clone(), Some("a-new-token-of-some-length"))
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
        let refused = opens(channel_of.clone(), Some(TOKEN))
            .await
            .expect_err("refused");
        assert_eq!(refused.code(), Code::Unauthenticated);
        // Whoever takes the tokens away, takes them away.
        certificates.write("tokens", "");
        while opens(channel_of.clone(), Some("a-new-token-of-some-length"))
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn the_lease_of_a_token_that_is_withdrawn_ends() {
    let certificates = Certificates::new();
    certificates.write("tokens", TOKEN);
    let tokens = certificates.text("tokens");
    run(async {
        let (_child, address) = listening("grpc://127.0.0.1:0", &["--token-file", &tokens]).await;
        let channel = channel(&address, None).await.expect("connected");
        let mut lease = lease_of(channel, Some(TOKEN)).await.expect("let in");
        lease.message().await.expect("opened");
        certificates.write("tokens", "a-new-token-of-some-length");
        let ended = lease.message().await.expect_err("ended");
        assert_eq!(ended.code(), Code::Unauthenticated);
    });
}

#[test]
fn strangers_who_say_nothing_keep_nobody_waiting() {
    let certificates = Certificates::new();
    certificates.write("tokens", TOKEN);
    let tokens = certificates.text("tokens");
    run(async {
        let options = ["--token-file", &tokens, "--max-connections", "1"];
        let (_child, address) = listening("grpc://127.0.0.1:0", &options).await;
        let socket = address.trim_start_matches("http://");
        let mut strangers = Vec::new();
        for _ in 0..600 {
            strangers.push(TcpStream::connect(socket).await.expect("connected"));
        }
        let known = channel(&address, None).await.expect("connected");
        opens(known, Some(TOKEN)).await.expect("let in");
        // The last of them is still there: nobody waited for its time to be over.
        let last = strangers.last_mut().expect("a stranger");
        let said = last.try_read(&mut [0; 64]);
        let open = said.expect_err("nothing was said").kind();
        assert_eq!(open, std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn who_is_not_let_in_takes_nobodys_place_and_is_told_no_more_than_health() {
    let certificates = Certificates::new();
    certificates.write("tokens", TOKEN);
    let tokens = certificates.text("tokens");
    run(async {
        let options = ["--token-file", &tokens, "--max-connections", "1"];
        let (_child, address) = listening("grpc://127.0.0.1:0", &options).await;
        let strangers = [
            channel(&address, None).await.expect("connected"),
            channel(&address, None).await.expect("connected"),
        ];
        for stranger in strangers {
            let refused = opens(stranger.clone(), None).await.expect_err("refused");
            assert_eq!(refused.code(), Code::Unauthenticated);
            let mut health = tonic_health::pb::health_client::HealthClient::new(stranger);
            let asked = tonic_health::pb::HealthCheckRequest::default();
            health.check(asked.clone()).await.expect("answered");
            let watched = health.watch(asked).await.expect_err("refused");
            assert_eq!(watched.code(), Code::Unauthenticated);
            // The claimed length is not believed.
            let service = "x".repeat(2000);
            let asked = tonic_health::pb::HealthCheckRequest { service };
            let refused = health.check(asked).await.expect_err("refused");
            assert_eq!(refused.code(), Code::OutOfRange);
        }
        let known = channel(&address, None).await.expect("connected");
        opens(known, Some(TOKEN)).await.expect("let in");
    });
}

#[test]
fn a_thousand_sessions_that_nobody_waits_for_start_few_workers() {
    run(async {
        let options = crate::support::options().prewarmed(0);
        let provider = code_mode_host::Provider::new(options).expect("the program is there");
        for _ in 0..1000 {
            let agent = std::sync::Arc::new(crate::support::Agent::default());
            let opening = provider.create_session(agent);
            // It is begun, and dropped; a worker may be there by then.
            drop(futures::FutureExt::now_or_never(opening));
        }
        let agent = std::sync::Arc::new(crate::support::Agent::default());
        let session = provider.create_session(agent).await.expect("a session");
        assert!(provider.workers().started <= 2, "{:?}", provider.workers());
        session.shutdown().await;
        provider.shutdown().await;
    });
}

#[test]
fn only_who_has_a_certificate_of_the_clients_authority_is_let_in() {
    let certificates = Certificates::new();
    let strangers = Certificates::new();
    let [certificate, key, authority] =
        ["host.pem", "host.key", "ca.pem"].map(|name| certificates.text(name));
    run(async {
        let options = [
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
            "--tls-client-ca",
            &authority,
        ];
        let (_child, address) = listening("grpc://127.0.0.1:0", &options).await;
        let known = channel(&address, Some(certificates.tls(true))).await;
        opens(known.expect("connected"), None)
            .await
            .expect("let in");
        let identity =
            Identity::from_pem(strangers.read("client.pem"), strangers.read("client.key"));
        let stranger = certificates.tls(false).identity(identity);
        for tls in [certificates.tls(false), stranger] {
            // In TLS 1.3 the client learns of it with its first request.
            if let Ok(channel) = channel(&address, Some(tls)).await {
                opens(channel, None).await.expect_err("refused");
            }
        }
    });
}

/// A channel to a socket in the file system.
async fn unix_channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://host");
    endpoint
        .connect_with_connector(connect)
        .await
        .expect("connected")
}

#[test]
fn a_socket_is_its_users_alone_and_its_name_goes_with_the_host() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("host");
    let listen = format!("unix:{}", path.display());
    run(async {
        // What a host left behind that was killed is nobody's.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let (child, address) = listening(&listen, &[]).await;
        assert_eq!(address, listen);
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut host = Host::new(child, unix_channel(&path).await, None);
        let session = host.open(OpenSessionRequest::default()).await;
        assert_eq!(texts(&session.exec("e", "text(1)").await), ["1"]);
        // It is taken.
        let second = Command::new(program())
            .args(["serve", "--listen", &listen])
            .output()
            .expect("it starts");
        assert_eq!(second.status.code(), Some(1));
        assert!(path.exists());
        interrupt(&host, Signal::INT);
        assert!(host.child.wait().await.expect("it ends").success());
        assert!(!path.exists());
    });
}

#[test]
fn a_name_that_is_another_hosts_by_then_stays_and_one_that_is_too_long_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("host");
    let listen = format!("unix:{}", path.display());
    run(async {
        let (first, _) = listening(&listen, &[]).await;
        std::fs::remove_file(&path).expect("there");
        let (_second, _) = listening(&listen, &[]).await;
        let mut first = Host::new(first, unix_channel(&path).await, None);
        interrupt(&first, Signal::INT);
        assert!(first.child.wait().await.expect("it ends").success());
        let mut second = CodeModeHostClient::new(unix_channel(&path).await);
        second
            .open_session(OpenSessionRequest::default())
            .await
            .expect("it is there");
    });
    let long = directory.path().join("x".repeat(120));
    let refused = Command::new(program())
        .args(["serve", "--listen", &format!("unix:{}", long.display())])
        .output()
        .expect("it starts");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("at most 107 bytes"));
    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("there")
        .collect();
    assert_eq!(left.len(), 1, "the second host's name alone: {left:?}");
}

#[test]
fn numbers_that_cannot_be_meant_are_wrong_usage_and_a_full_standard_error_is_no_panic() {
    for option in [
        "--max-sessions=0",
        "--max-sessions=18446744073709551615",
        "--max-connections=0",
        "--max-streams=0",
        "--max-message=67108865",
    ] {
        let output = Command::new(program())
            .args(["serve", option])
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{option}");
    }
    let full = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("there")
    };
    let status = Command::new(program())
        .args(["serve", "--listen=stdio", "--ops-listen=127.0.0.1:0"])
        .stderr(full())
        .status()
        .expect("it starts");
    assert_eq!(status.code(), Some(2));
    let status = Command::new(program())
        .args([
            "serve",
            "--listen=grpc+stdio://",
            "--ops-listen=127.0.0.1:0",
        ])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(full())
        .status()
        .expect("it starts");
    assert!(status.success());
    let status = Command::new(program())
        .arg("doctor")
        .stdout(full())
        .status();
    assert_ne!(status.expect("it starts").code(), Some(101));
}

fn interrupt(host: &Host, signal: Signal) {
    send(host.child.id().expect("it runs"), signal);
}

#[test]
fn connections_and_sessions_beyond_the_most_are_told_so_until_others_go() {
    run(async {
        let options = ["--max-connections", "1", "--max-sessions", "2"];
        let mut host = Host::tcp_with(&options).await;
        let first = host.open(OpenSessionRequest::default()).await;
        let second = host.open(OpenSessionRequest::default()).await;
        let asked = OpenSessionRequest::default();
        let refused = host.client.open_session(asked).await.expect_err("refused");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.message(), "code-mode host has too many sessions");
        second.close().await;
        let third = host.open(OpenSessionRequest::default()).await;
        let address = host.address.clone().expect("it listens");
        let other = channel(&address, None).await.expect("connected");
        let refused = opens(other.clone(), None).await.expect_err("refused");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.message(), "code-mode host has too many connections");
        // The one that is served goes: the same connection is served now.
        let Host {
            child: _child,
            client,
            ..
        } = host;
        drop((first, second, third, client));
        while let Err(refused) = opens(other.clone(), None).await {
            assert_eq!(refused.code(), Code::ResourceExhausted);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_message_or_a_flood_of_streams_beyond_the_limit_costs_nobody_else() {
    run(async {
        let options = ["--max-message", "4096", "--max-streams", "8"];
        let mut host = Host::tcp_with(&options).await;
        let session = host.open(OpenSessionRequest::default()).await;
        let large = session.request("large", &format!("//{}", "x".repeat(5000)));
        let refused = session.client.clone().execute(large).await;
        assert_eq!(refused.expect_err("refused").code(), Code::OutOfRange);
        // More than there is room for wait for their turn.
        let cells = (0..100).map(|n| {
            let session = &session;
            async move { session.exec(&format!("e{n}"), "text(1)").await }
        });
        for outcome in futures::future::join_all(cells).await {
            assert_eq!(texts(&outcome), ["1"]);
        }
    });
}

#[test]
fn after_sigterm_cells_go_on_for_a_while_and_nothing_new_is_taken() {
    run(async {
        let mut host = Host::tcp_with(&["--drain-time", "600000"]).await;
        let session = host.open(OpenSessionRequest::default()).await;
        let mut calls = session.subscribe(&[]).await;
        let mut cell = session.execute("e", "text(await tools.echo(1))").await;
        let call = next(&mut calls).await;
        interrupt(&host, Signal::TERM);
        let address = host.address.clone().expect("it listens");
        let address = address.strip_prefix("http://").expect("a URL");
        while http(address, "GET /healthz").await.0.contains("200 OK") {}
        let (status, _) = http(address, "GET /healthz").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        let asked = OpenSessionRequest::default();
        let refused = host.client.open_session(asked).await.expect_err("refused");
        assert_eq!(refused.code(), Code::Unavailable);
        let another = session.request("another", "text(1)");
        let refused = session.client.clone().execute(another).await;
        assert_eq!(refused.expect_err("refused").code(), Code::Unavailable);
        session
            .complete(&call.invocation_id, Ok("\"done\"".to_owned()))
            .await;
        assert_eq!(texts(&outcome(&mut cell).await), ["done"]);
        // Its last cell is gone: so is the host.
        assert!(host.child.wait().await.expect("it ends").success());
    });
}

#[test]
fn cells_that_do_not_end_are_stopped_when_their_time_is_over_or_at_a_second_signal() {
    run(async {
        for (time, signals) in [("50", 1), ("600000", 2)] {
            let mut host = Host::tcp_with(&["--drain-time", time]).await;
            let session = host.open(OpenSessionRequest::default()).await;
            let mut busy = session.execute("e", "while (true) {}").await;
            let address = host.address.clone().expect("it listens");
            let address = address.strip_prefix("http://").expect("a URL");
            interrupt(&host, Signal::TERM);
            if signals == 2 {
                while http(address, "GET /healthz").await.0.contains("200 OK") {}
                interrupt(&host, Signal::INT);
            }
            assert!(busy.message().await.expect("ended well").is_none());
            assert!(host.child.wait().await.expect("it ends").success());
        }
    });
}

#[test]
fn who_connects_and_says_too_little_is_left() {
    let certificates = Certificates::new();
    let [certificate, key] = ["host.pem", "host.key"].map(|name| certificates.text(name));
    run(async {
        let tls = ["--tls-cert", &certificate, "--tls-key", &key];
        let mut open = Vec::new();
        let mut hosts = Vec::new();
        for options in [&[][..], &tls] {
            let (child, address) = listening("grpc://127.0.0.1:0", options).await;
            let (_, address) = address.split_once("://").expect("a URL");
            for said in [
                &b""[..],
                b"PRI * HTTP/2.0\r\n",
                b"GET /healthz HTTP/1.1\r\nx-header: ",
            ] {
                let mut stream = TcpStream::connect(address).await.expect("connected");
                stream.write_all(said).await.expect("sent");
                open.push(stream);
            }
            hosts.push(child);
        }
        // All at once, so that the test takes the time of one.
        let ends = open.iter_mut().map(|stream| async {
            let mut rest = Vec::new();
            // Reset or closed: it is over.
            let _ = stream.read_to_end(&mut rest).await;
        });
        futures::future::join_all(ends).await;
    });
}

#[test]
fn a_standard_error_that_nobody_reads_holds_nothing_up() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut full = writer.try_clone().expect("the same");
    rustix::io::ioctl_fionbio(&full, true).expect("set");
    while full.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).expect("set");
    run(async {
        let mut command = tokio::process::Command::new(program());
        command.arg("serve").env("RUST_LOG", "trace").stderr(writer);
        let mut host = Host::stdio_of(command).await;
        let session = host.open(OpenSessionRequest::default()).await;
        let ran = tokio::time::timeout(Duration::from_secs(30), session.exec("e", "text(1)"));
        assert_eq!(texts(&ran.await.expect("not held up")), ["1"]);
    });
    drop(reader);
}

#[test]
fn a_standard_error_that_nobody_reads_adds_nothing_to_standard_output() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    run(async {
        let mut command = tokio::process::Command::new(program());
        command.args(["serve", "--listen", "grpc://127.0.0.1:0"]);
        command.env("RUST_LOG", "trace").stderr(writer);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("it starts");
        let mut output = tokio::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut address = String::new();
        output.read_line(&mut address).await.expect("text");
        let endpoint = Endpoint::from_shared(address.trim().to_owned()).expect("a URL");
        let mut host = Host::new(child, endpoint.connect().await.expect("connected"), None);
        let session = host.open(OpenSessionRequest::default()).await;
        // Libraries write dozens of lines about each; 4,096 wait for a reader.
        for number in 0..200 {
            session.exec(&format!("e{number}"), "text(1)").await;
        }
        send(host.child.id().expect("it runs"), Signal::TERM);
        let mut rest = String::new();
        output.read_to_string(&mut rest).await.expect("text");
        assert_eq!(rest, "");
        assert!(host.child.wait().await.expect("it ends").success());
    });
    drop(reader);
}

#[test]
fn where_one_end_speaks_tls_and_the_other_does_not_both_say_so() {
    let certificates = Certificates::new();
    certificates.write("tokens", TOKEN);
    certificates.write("a.js", "text(1)");
    let script = certificates.text("a.js");
    let tokens = certificates.text("tokens");
    run(async {
        let (_child, address) = certificates.guarded_host().await;
        let plain = address.replace("https://", "http://");
        let mut stream = TcpStream::connect(plain.trim_start_matches("http://"))
            .await
            .expect("connected");
        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(
            answer.ends_with("write https:// instead of http://"),
            "{answer}"
        );
        let borrowed = |url: &str| {
            let output = Command::new(program())
                .args([
                    "run",
                    "--worker-host",
                    url,
                    "--worker-token-file",
                    &tokens,
                    &script,
                ])
                .output()
                .expect("it runs");
            assert_eq!(output.status.code(), Some(3), "{output:?}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let said = borrowed(&plain);
        assert!(
            said.contains("has an address that begins with https://"),
            "{said}"
        );
        let (_child, address) = listening("grpc://127.0.0.1:0", &[]).await;
        let said = borrowed(&address.replace("http://", "https://"));
        assert!(said.contains("its address begins with http://"), "{said}");
    });
}
