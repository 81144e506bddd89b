//! How the cost of the n-th cell, session, tool and stored value grows.

use std::time::{Duration, Instant};

use code_mode_host::{ExecuteRequest, Provider, Sandbox, ToolSet};

use crate::{HI, exec, options, runtime, session, tools};

/// How the cost of the n-th of something grows; it should not.
pub fn scale() {
    let runtime = runtime();
    runtime.block_on(async {
        let provider = Provider::new(options(Sandbox::BestEffort, 1)).expect("the program");
        let median_us = async |session: &code_mode_host::Session, tools: &ToolSet| {
            let mut times = Vec::new();
            for _ in 0..41 {
                let start = Instant::now();
                exec(session, HI, tools).await;
                times.push(start.elapsed().as_micros());
            }
            times.sort_unstable();
            times[20]
        };
        let none = tools(0);
        println!("\nwarm exec beside n waiting cells of its worker, us");
        let crowded = session(&provider).await;
        let mut waiting = 0;
        for n in [1, 10, 100, 1000] {
            while waiting < n {
                let request = ExecuteRequest::new("bench", "await new Promise(() => {})")
                    .yield_time(Duration::ZERO);
                crowded.execute(request).await.expect("admitted");
                waiting += 1;
            }
            println!("  {n:>5}  {}", median_us(&crowded, &none).await);
        }
        println!("\nwarm exec with n tools, us");
        let one = session(&provider).await;
        for n in [1, 100, 1000, 5000] {
            println!("  {n:>5}  {}", median_us(&one, &tools(n)).await);
        }
        println!("\nwarm exec beside n MB of stored values, us");
        for n in [1, 10, 100] {
            let source =
                format!("for (let i = 0; i < {n}; i++) store('k' + i, 'x'.repeat(10 ** 6))");
            exec(&one, &source, &none).await;
            println!("  {n:>5}  {}", median_us(&one, &none).await);
        }
        println!("\nopening the last of n sessions, its first cell and a warm exec, us");
        let mut sessions = Vec::new();
        for n in [1, 10, 50, 200] {
            while sessions.len() < n - 1 {
                sessions.push(session(&provider).await);
            }
            let start = Instant::now();
            let last = session(&provider).await;
            let opened = start.elapsed().as_micros();
            let start = Instant::now();
            exec(&last, HI, &none).await;
            let first = start.elapsed().as_micros();
            println!(
                "  {n:>5}  {opened:>6} {first:>6} {:>6}",
                median_us(&last, &none).await
            );
            sessions.push(last);
        }
        provider.shutdown().await;
    });
}
