use std::process::ExitCode;
#[derive(clap::Args, Debug)]
pub(crate) struct Args { #[command(flatten)] runtime: crate::args::RuntimeArgs, file: std::path::PathBuf }
struct D;
#[async_trait::async_trait]
impl code_mode_protocol::CodeModeSessionDelegate for D {
    async fn invoke_tool(&self, _: code_mode_protocol::NestedToolCall, _: tokio_util::sync::CancellationToken) -> Result<code_mode_protocol::Json, String> { Err("x".into()) }
    async fn notify(&self, _: String, _: code_mode_protocol::CellId, _: String, _: tokio_util::sync::CancellationToken) {}
    async fn cell_closed(&self, _: code_mode_protocol::CellId) {}
}
pub(crate) fn main(args: Args) -> ExitCode {
    use code_mode_protocol::*;
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let p = code_mode_host::Provider::new(args.runtime.provider_options()).unwrap();
        let s = p.create_session(std::sync::Arc::new(D)).await.unwrap();
        let r = s.execute(ExecuteRequest::new("c", std::fs::read_to_string(&args.file).unwrap())).await.unwrap().initial_response.await.unwrap();
        println!("{r:?}");
        p.shutdown().await;
    });
    ExitCode::SUCCESS
}
