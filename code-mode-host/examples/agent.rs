//! An agent core in fifty lines: one tool, one program of a model, one answer.
//!
//! `cargo run -p code-mode-host --example agent` needs the program `code-mode` on `PATH` or
//! beside the example (`cargo build -p code-mode-bin`, then `--worker target/debug/code-mode`).

use std::sync::Arc;

use code_mode_host::{
    CodeModeSessionDelegate, ContentItem, ExecuteRequest, Json, NestedToolCall, Provider,
    ProviderOptions, SessionOptions, ToolDefinition, ToolError, WorkerSource, describe,
};
use tokio_util::sync::CancellationToken;

/// The side of the agent: it runs the tools that programs call.
struct Agent;

#[async_trait::async_trait]
impl CodeModeSessionDelegate for Agent {
    async fn invoke_tool(
        &self,
        call: NestedToolCall,
        _cancelled: CancellationToken,
    ) -> Result<Json, ToolError> {
        let input = call.input.ok_or("add takes two numbers")?;
        let [a, b]: [f64; 2] = input.to().map_err(|error| error.to_string())?;
        Ok(Json::from_value(&(a + b)).map_err(|error| error.to_string())?)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = ProviderOptions::default();
    if let Some(program) = std::env::args().skip_while(|arg| arg != "--worker").nth(1) {
        options = options.worker(WorkerSource::Program(program.into()));
    }
    let provider = Provider::new(options)?;
    let session = provider
        .open_session(Arc::new(Agent), SessionOptions::default())
        .await?;

    let add = ToolDefinition::function("add", "The sum of two numbers");
    // What a model reads before it writes a program.
    println!(
        "{}\n",
        describe::exec_tool(std::slice::from_ref(&add), false)
    );

    let program = "const sums = await Promise.all([[1, 2], [19, 23]].map(tools.add)); text(sums)";
    let request = ExecuteRequest::new("call-1", program).tools([add]);
    let running = session.execute(request).await?;
    println!("cell {} runs", running.id());
    for item in running.outcome().await?.content_items() {
        if let ContentItem::Text { text, .. } = item {
            println!("{text}");
        }
    }
    provider.shutdown().await;
    Ok(())
}
