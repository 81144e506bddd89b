//! The first exec of a process, measured in fresh processes: from the making of the
//! provider to the result.

use std::process::Command;
use std::time::Instant;

use code_mode_host::{Provider, Sandbox};

use crate::{HI, TOOLS, exec, in_process, options, runtime, session, tools};

/// Fresh processes for each figure.
const SAMPLES: usize = 20;

/// The ways in.
const WAYS: [&str; 2] = ["in process", "native IPC"];

/// Microseconds from the making of the provider to the first result in this process,
/// which has done nothing else.
pub fn first_exec(way: &str, count: usize) -> u128 {
    let tools = tools(count);
    let runtime = runtime();
    let start = Instant::now();
    runtime.block_on(async {
        let provider = match way {
            "in process" => in_process(),
            _ => Provider::new(options(Sandbox::BestEffort, 1)).expect("the program"),
        };
        let session = session(&provider).await;
        exec(&session, HI, &tools).await;
        let taken = start.elapsed().as_micros();
        provider.shutdown().await;
        taken
    })
}

/// Measures every way in with every number of tools.
pub fn cold() {
    println!("\nCold exec, {SAMPLES} fresh processes each, us: mean, p95");
    for way in WAYS {
        for count in TOOLS {
            let times = samples(SAMPLES, &["--cold", way, &count.to_string()]);
            let mean = times.iter().sum::<u64>() / times.len() as u64;
            let p95 = times[(times.len() * 95).div_ceil(100) - 1];
            println!(
                "  {:56} {mean:>8} {p95:>8}",
                format!("{way}, {count} tools")
            );
        }
    }
}

/// What fresh processes of this program print with these arguments, sorted.
pub fn samples(count: usize, arguments: &[&str]) -> Vec<u64> {
    let program = std::env::current_exe().expect("a path");
    let mut samples: Vec<u64> = (0..count)
        .filter_map(|_| {
            let output = Command::new(&program).args(arguments).output().ok()?;
            String::from_utf8_lossy(&output.stdout).trim().parse().ok()
        })
        .collect();
    assert_eq!(samples.len(), count, "a sample of {arguments:?} failed");
    samples.sort_unstable();
    samples
}
