//! Machines that give a worker less than it could use: it runs with the rest and
//! names the missing layer and the reason, or says why it cannot run.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use serde_json::Value;

use crate::support::program;

/// The program and a script, where any user can read them.
struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), all.clone()).expect("set");
        let installed = Self { folder };
        // A link where that can be: the program is large.
        if std::fs::hard_link(program(), installed.program()).is_err() {
            std::fs::copy(program(), installed.program()).expect("copied");
        }
        std::fs::set_permissions(installed.program(), all).expect("set");
        std::fs::write(installed.script(), "text(6 * 7)").expect("written");
        installed
    }

    /// Not under its own name, so that only the path of the start leads to it.
    fn program(&self) -> PathBuf {
        self.folder.path().join("installed")
    }

    fn script(&self) -> PathBuf {
        self.folder.path().join("script.js")
    }
}

/// A place to run the program in: the command that runs this one there.
trait Place {
    fn command(&self, program: &Path) -> Command;
}

impl<F: Fn(&Path) -> Command> Place for F {
    fn command(&self, program: &Path) -> Command {
        self(program)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(place: &impl Place, arguments: &[&str]) -> Output {
    let installed = Installed::new();
    place
        .command(&installed.program())
        .arg("run")
        .args(arguments)
        .arg(installed.script())
        .output()
        .expect("it starts")
}

fn assert_runs(place: &impl Place) {
    let output = run(place, &[]);
    let said = text(&output.stderr);
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("42\n", Some(0)),
        "{said}"
    );
    // One line names the missing layer; the output has no other.
    let lines: Vec<&str> = said.lines().collect();
    match missing_layers(place).keys().next() {
        None => assert_eq!(lines, [""; 0]),
        Some(layer) => {
            let [line] = lines[..] else {
                panic!("not one line: {said}");
            };
            assert!(line.contains("WARN") && line.contains(layer), "{line}");
            assert!(line.contains("docs/sandbox.md"), "{line}");
        }
    }
}

/// What `doctor` says of the place: why layers are missing, by their names. Every
/// native probe is refused everywhere.
fn missing_layers(place: &impl Place) -> BTreeMap<String, String> {
    let installed = Installed::new();
    let output = place
        .command(&installed.program())
        .args(["doctor", "--json"])
        .output()
        .expect("it starts");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    for probe in report["probes"].as_array().expect("probes") {
        assert_eq!(probe["refused"], true, "{probe}");
    }
    let layers = report["sandbox"].as_array().expect("layers");
    assert!(layers.len() >= 9);
    layers
        .iter()
        .filter(|layer| layer["holds"] != true)
        .map(|layer| {
            let word = |key: &str| layer[key].as_str().expect("text").to_owned();
            (word("name"), word("why"))
        })
        .collect()
}

fn here(program: &Path) -> Command {
    Command::new(program)
}

/// Under `ulimit -v`.
fn with_addresses(gib: u64) -> impl Place {
    move |program: &Path| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -v {} && exec \"$0\" \"$@\"", gib << 20))
            .arg(program);
        command
    }
}

#[test]
fn under_a_small_address_space_limit_the_number_needed_is_told() {
    for gib in [4, 16, 55, 57, 100, 200] {
        let output = run(&with_addresses(gib), &[]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{gib} GiB: {error}");
        assert_eq!(error.lines().count(), 1, "{gib} GiB: {error}");
        assert!(
            error.contains("the address-space limit (ulimit -v) is too low")
                && error.contains("256 GiB"),
            "{gib} GiB: {error}"
        );
    }
}

#[test]
fn under_an_address_space_limit_that_is_enough_cells_run() {
    for gib in [260, 1_000, 5_000] {
        assert_runs(&with_addresses(gib));
    }
}

/// As a user without any rights, where this one is root.
fn ordinary_user(program: &Path) -> Command {
    const NOBODY: u32 = 65_534;
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    command
}

#[test]
fn an_ordinary_user_has_the_layers_that_root_has_but_those_the_kernel_keeps_from_it() {
    assert_runs(&ordinary_user);
    let of_root = missing_layers(&here);
    let of_user = missing_layers(&ordinary_user);
    for (layer, why) in of_user {
        // Some systems allow new user namespaces to root only.
        let of_namespaces = ["namespaces", "empty root"].contains(&layer.as_str());
        assert!(
            of_namespaces || of_root.contains_key(&layer),
            "{layer}: {why}"
        );
    }
}

/// Refuses system calls from the start, as a container engine does.
fn refusing(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> BpfProgram {
    filter(calls, SeccompAction::Errno(errno.unsigned_abs()))
}

fn filter(calls: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction) -> BpfProgram {
    let target = TargetArch::try_from(std::env::consts::ARCH).expect("a known processor");
    SeccompFilter::new(calls, SeccompAction::Allow, action, target)
        .and_then(BpfProgram::try_from)
        .expect("a filter")
}

/// A rule for calls that have all of these bits in one of their arguments.
fn bits(argument: u8, wanted: i32) -> SeccompRule {
    let wanted = u64::from(wanted.unsigned_abs());
    let set = SeccompCmpOp::MaskedEq(wanted);
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, set, wanted)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .expect("a rule")
}

/// A program started behind filters.
fn behind(filters: Vec<BpfProgram>) -> impl Place {
    move |program: &Path| {
        let mut command = ordinary_user(program);
        let filters = filters.clone();
        // SAFETY: between `fork` and `execve` this only makes the system calls that
        // install the filters; they were made before, and nothing allocates but an
        // error, after which the child ends.
        unsafe {
            command.pre_exec(move || {
                filters
                    .iter()
                    .try_for_each(|filter| apply_filter(filter))
                    .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
            });
        }
        command
    }
}

/// Whether the program names shared libraries, and with them who loads those. It does
/// without an archive of the C library to build it with.
fn has_shared_libraries() -> bool {
    let mut begin = [0; 4096];
    std::fs::File::open(program())
        .and_then(|mut program| program.read_exact(&mut begin))
        .expect("the program");
    let interpreter = b"/ld-linux-";
    begin
        .windows(interpreter.len())
        .any(|bytes| bytes == interpreter)
}

#[test]
fn no_shared_library_is_loaded_also_where_a_name_is_looked_up() {
    if has_shared_libraries() {
        return;
    }
    // The loader's mark of a library's pages; nothing else has it.
    let mapped = BTreeMap::from([(libc::SYS_mmap, vec![bits(3, libc::MAP_DENYWRITE)])]);
    let place = behind(vec![filter(mapped, SeccompAction::KillProcess)]);
    assert_runs(&place);
    let output = run(&place, &["--worker-host", "https://no-such-name.invalid:1"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no-such-name.invalid:1"), "{said}");
    let traces = ["--otel-trace-exporter", "http://no-such-name.invalid:1/"];
    let output = run(&place, &traces);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let config = tempfile::NamedTempFile::new().expect("a file");
    let servers = r#"{"mcpServers": {"a": {"url": "http://no-such-name.invalid/"}}}"#;
    std::fs::write(&config, servers).expect("written");
    let all = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(config.path(), all).expect("set");
    let installed = Installed::new();
    let output = place
        .command(&installed.program())
        .args(["mcp", "check", "--config"])
        .arg(config.path())
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}

/// Where the processor has them, V8 keeps compiled code from being written by memory
/// protection keys. It asks for one also without them.
#[test]
#[cfg(target_arch = "x86_64")]
fn v8_asks_for_memory_protection_keys() {
    let asked = BTreeMap::from([(libc::SYS_pkey_alloc, Vec::new())]);
    let place = behind(vec![filter(asked, SeccompAction::KillProcess)]);
    let output = run(&place, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("SIGSYS"), "{said}");
}

/// What the default profiles of the common container engines take from a process
/// without capabilities.
fn container() -> impl Place {
    let whole = [
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_mount_setattr,
        libc::SYS_chroot,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_open_by_handle_at,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_mbind,
        libc::SYS_set_mempolicy,
        libc::SYS_move_pages,
        libc::SYS_vhangup,
        libc::SYS_personality,
    ];
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> =
        whole.into_iter().map(|call| (call, Vec::new())).collect();
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ]
    .map(|flag| bits(0, flag));
    refused.insert(libc::SYS_clone, namespaces.to_vec());
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    behind(vec![
        refusing(refused, libc::EPERM),
        refusing(no_clone3, libc::ENOSYS),
    ])
}

#[test]
fn under_a_containers_seccomp_profile_all_layers_but_namespaces_hold() {
    let place = container();
    assert_runs(&place);
    let missing = missing_layers(&place);
    let names: Vec<_> = missing.keys().map(String::as_str).collect();
    assert_eq!(names, ["empty root", "namespaces"]);
    assert!(missing["namespaces"].contains("Operation not permitted"));
}

#[test]
fn where_a_layer_is_missing_a_required_sandbox_is_refused_and_the_layer_named() {
    let output = run(&container(), &["--require-sandbox"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("namespaces"), "{error}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn on_a_kernel_without_landlock_the_other_layers_hold() {
    let calls = [
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_restrict_self,
    ];
    let refused = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let place = behind(vec![refusing(refused, libc::ENOSYS)]);
    assert_runs(&place);
    let missing = missing_layers(&place);
    assert!(missing.contains_key("landlock"), "{missing:?}");
}

#[test]
fn without_proc_cells_run_and_the_missing_layers_say_why() {
    let place = |program: &Path| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg("mount -t tmpfs none /proc && exec \"$0\" \"$@\"")
            .arg(program);
        command
    };
    let allowed = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("not tested: this user may not hide /proc here");
        return;
    }
    assert_runs(&place);
    let missing = missing_layers(&place);
    let why = missing.get("namespaces").expect("not without /proc");
    assert!(why.contains("/proc"), "{why}");
}
