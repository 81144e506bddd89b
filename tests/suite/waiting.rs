//! Cells that wait for long.

use std::sync::Arc;

use code_mode_protocol::Limits;
use futures::future::join_all;

use crate::support::{Agent, exec, open, run, texts};

/// Waits for longer than it takes until what a cell does not need is given back, and
/// then uses all that it has: its heap, memory outside of it, tables of V8's.
const SOURCE: &str = r#"
    const bytes = new Uint8Array(100_000).fill(7);
    const words = new Map(Array.from({ length: 1000 }, (_, i) => [`word ${i}`, { i }]));
    const refs = Array.from({ length: 100 }, () => new WeakRef({}));
    const pattern = /^word (\d+)$/u;
    const made = () => Array.from({ length: 200 }, (_, i) => new Uint8Array(10_000).fill(i)).length;
    let sum = 0;
    for (let turn = 0; turn < 2; turn++) {
        await new Promise(done => setTimeout(done, 400));
        for (let i = 0; i < 20; i++) made();
        for (const [word, { i }] of words) sum += Number(pattern.exec(word)[1]) === i ? 1 : 0;
        try { null.x } catch (error) { sum += error instanceof TypeError ? 1 : 0 }
    }
    text(`${sum} ${bytes.every(b => b === 7)} ${refs.length} ${await tools.echo('there')}`);
"#;

#[test]
fn cells_that_waited_long_go_on_with_all_they_had() {
    run(async {
        let opened = open(Arc::new(Agent::default()), Limits::default()).await;
        let cells = (0..8).map(|_| exec(&opened.session, SOURCE));
        for response in join_all(cells).await {
            assert_eq!(texts(&response), ["2002 true 100 there"]);
        }
        opened.provider.shutdown().await;
    });
}
