//! The table of the documentation: a cold exec, warm ones, and the memory of both, for numbers of
//! tools. Every sample is a fresh process.

use std::process::Command;
use std::time::Instant;

use code_mode_host::{Provider, Sandbox};

use crate::memory::proportional_memory;
use crate::{HI, exec, in_process, options, runtime, session, tools};

/// The ways in.
const WAYS: [&str; 2] = ["in process", "native IPC"];

/// What the table is made of.
pub struct Wanted {
    samples: usize,
    warm_iterations: usize,
    tool_counts: Vec<usize>,
}

impl Wanted {
    /// What the documentation has.
    pub fn documented() -> Self {
        Self {
            samples: 20,
            warm_iterations: 200,
            tool_counts: vec![0, 32, 128],
        }
    }

    /// Reads `--samples N`, `--warm-iterations N` and `--tool-counts N,N`; `None` where none of them
    /// is there.
    ///
    /// # Errors
    /// The option whose value is missing or no number.
    pub fn of(arguments: &[String]) -> Result<Option<Self>, String> {
        let mut wanted = Self::documented();
        let mut is_wanted = false;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            if !["--samples", "--warm-iterations", "--tool-counts"].contains(&name) {
                continue;
            }
            is_wanted = true;
            let value = value.or_else(|| rest.next().cloned()).unwrap_or_default();
            let numbers: Result<Vec<usize>, _> = value.split(',').map(str::parse).collect();
            match (name, numbers.ok().as_deref()) {
                ("--tool-counts", Some(counts)) => wanted.tool_counts = counts.to_vec(),
                ("--samples", Some([samples])) if *samples > 0 => wanted.samples = *samples,
                ("--warm-iterations", Some([count])) if *count > 0 => {
                    wanted.warm_iterations = *count;
                }
                _ => return Err(format!("{name} takes a number, not {value:?}")),
            }
        }
        Ok(is_wanted.then_some(wanted))
    }

    /// Measures, and prints the table.
    pub fn print(&self) {
        let (samples, warm) = (self.samples, self.warm_iterations);
        println!("Means, and p95, of {samples} fresh processes, {warm} warm execs in each:\n");
        println!(
            "| way in, tools | cold exec | p95 | warm exec | p95 | memory after the first | after the warm ones |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for way in WAYS {
            for count in &self.tool_counts {
                let all: Vec<[f64; 4]> = (0..samples).map(|_| fresh(way, *count, warm)).collect();
                let [cold, warm, first, after]: [Vec<f64>; 4] =
                    std::array::from_fn(|column| all.iter().map(|sample| sample[column]).collect());
                println!(
                    "| {way}, {count} | {:.2} ms | {:.2} ms | {:.0} us | {:.0} us | {:.1} MiB | {:.1} MiB |",
                    mean(&cold) / 1e3,
                    p95(cold) / 1e3,
                    mean(&warm),
                    p95(warm),
                    mean(&first) / 1024.0,
                    mean(&after) / 1024.0,
                );
            }
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn p95(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * 95).div_ceil(100) - 1]
}

/// A sample, measured in a separate process.
fn fresh(way: &str, tools: usize, warm: usize) -> [f64; 4] {
    let output = Command::new(std::env::current_exe().expect("a path"))
        .args(["--sample", way, &tools.to_string(), &warm.to_string()])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_ascii_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    numbers.try_into().expect("four numbers of a sample")
}

/// Measures in this process, which has done nothing else: from the making of the provider to the
/// first result, and a warm exec, in microseconds; then the growth of memory after the first, and
/// after all, in KiB.
pub fn sample(way: &str, count: usize, warm: usize) -> String {
    let tools = tools(count);
    let runtime = runtime();
    let before = proportional_memory();
    let grown = || proportional_memory().saturating_sub(before);
    runtime.block_on(async {
        let start = Instant::now();
        let provider = match way {
            "in process" => in_process(),
            _ => Provider::new(options(Sandbox::BestEffort, 1)).expect("the program"),
        };
        let session = session(&provider).await;
        exec(&session, HI, &tools).await;
        let cold = start.elapsed().as_micros();
        let first = grown();
        let start = Instant::now();
        for _ in 0..warm {
            exec(&session, HI, &tools).await;
        }
        let each = start.elapsed().as_micros() as f64 / warm as f64;
        let after = grown();
        provider.shutdown().await;
        format!("{cold} {each} {first} {after}")
    })
}
