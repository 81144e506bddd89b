//! The server that a client sees: `exec`, `wait`, and what passes through.

use std::sync::Arc;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult,
    GetPromptRequestParams, GetPromptResponse, Implementation, ListPromptsResult,
    ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
    ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities, ServerConfig,
    SetLevelRequestMethod, SetLevelRequestParams, SubscriptionFilter, Tool,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::changes::Changes;
use super::client::{Client, Connection, is_stateless};
use super::definitions::{exec_tool, wait_tool};
use super::direct::{direct, read};
use super::exec::exec;
use super::http_sessions::Closings;
use super::in_flight::Open;
use super::wait::wait;
use crate::broker::Broker;
use crate::resources;
use crate::tools::Tools;

/// What a client reads of the server as a whole.
const INSTRUCTIONS: &str = "One tool, exec, runs JavaScript programs that call the tools of all connected MCP servers; wait continues a program that takes long. Prefer one program for a whole task over several calls: intermediate data then stays out of the conversation.";

/// What the protocol's library calls for a connection.
pub(crate) struct Handler {
    connection: Connection,
    /// Held for as long as the connection lives.
    _place: Option<OwnedSemaphorePermit>,
    /// Over HTTP: when sessions are closed.
    closings: Closings,
}

impl Handler {
    #[cfg(test)]
    pub(crate) fn new(server: Arc<Shared>) -> Self {
        Self {
            connection: Connection::new(server, None),
            _place: None,
            closings: Closings::default(),
        }
    }

    /// The handler of a process's only connection.
    pub(super) fn alone(server: Arc<Shared>, open: Arc<Open>) -> Self {
        Self {
            connection: Connection::new(server, Some(open)),
            _place: None,
            closings: Closings::default(),
        }
    }

    /// The handler of a session over HTTP, one of a bounded number; or of a stateless request.
    pub(super) fn over_http(
        server: Arc<Shared>,
        place: OwnedSemaphorePermit,
        closings: Closings,
    ) -> Self {
        Self {
            connection: Connection::new(server, None),
            _place: Some(place),
            closings,
        }
    }

    /// The answer of one of the tools.
    async fn answer(
        &self,
        client: &Client<'_>,
        request: &CallToolRequestParams,
    ) -> Result<CallToolResponse, ErrorData> {
        match &*request.name {
            "exec" => exec(client, request).await,
            "wait" => wait(client, request).await,
            name => {
                let tools = self.offered(&self.broker().tools());
                if tools.iter().skip(2).any(|tool| tool.name == name) {
                    return direct(client, request).await;
                }
                let near = tools
                    .iter()
                    .map(|tool| tool.name.as_ref())
                    .filter(|known| strsim::jaro_winkler(known, name) > 0.8)
                    .collect::<Vec<_>>();
                let help = match near.is_empty() {
                    true => "there are exec and wait".to_owned(),
                    false => format!("did you mean {}?", near.join(", ")),
                };
                Err(ErrorData::invalid_params(
                    format!("unknown tool {name:?}: {help}"),
                    None,
                ))
            }
        }
    }

    fn broker(&self) -> &Broker {
        &self.connection.server.broker
    }

    fn offered(&self, tools: &Tools) -> Vec<Tool> {
        let mut offered = vec![exec_tool(&tools.description), wait_tool()];
        for entry in &tools.entries {
            let server = entry.upstream.name();
            let direct = &self.connection.server.direct;
            if !direct
                .iter()
                .any(|pattern| pattern.fits(server, &entry.tool.name))
            {
                continue;
            }
            let mut definition = entry.tool.definition.clone();
            definition["name"] = Value::from(entry.identifier.as_str());
            if let Ok(tool) = serde_json::from_value(definition) {
                offered.push(tool);
            }
        }
        offered
    }
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_logging()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_resources()
            .enable_completions()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(
                Implementation::new("code-mode", env!("CARGO_PKG_VERSION")).with_title("Code mode"),
            )
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // Some clients wait for a second, and never ask again.
        let shown = self.broker().tools();
        let offered = self.offered(&shown);
        self.connection.shown.set(shown);
        Ok(ListToolsResult::with_all_items(offered))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let client = self.connection.client(&context);
        let answering = self.answer(&client, &request);
        if client.stateless {
            return answering.await;
        }
        let mut answering = std::pin::pin!(answering);
        tokio::select! {
            answer = &mut answering => return answer,
            () = self.closings.closed(context.extensions.get()) => context.ct.cancel(),
        }
        // Its client is gone, and what it has begun ends.
        answering.await
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if is_stateless(&context) {
            return Err(ErrorData::method_not_found::<SetLevelRequestMethod>());
        }
        self.connection.set_log_level(request.level);
        Ok(())
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let mut changes = Changes::of(self.broker(), self.connection.shown.clone());
        let shutdown = self.broker().shutdown.clone();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            while changes.next().await {
                if context.peer.notify_tool_list_changed().await.is_err() {
                    return;
                }
            }
        }));
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        let mut accepted = SubscriptionFilter::default();
        accepted.tools_list_changed = requested.tools_list_changed;
        Some(accepted)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = Changes::from_now_on(self.broker());
        loop {
            tokio::select! {
                changed = changes.next() => if !changed { return Ok(()) },
                () = context.cancelled() => return Ok(()),
                () = self.broker().shutdown.cancelled() => return Ok(()),
            }
            if context.sink().notify_tool_list_changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        self.broker().servers_started().await;
        Ok(resources::prompts(self.broker()).await)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let client = self.connection.client(&context);
        let get = |context| resources::prompt(self.broker(), request, context);
        read(&client, get).await
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        resources::completion(self.broker(), request).await
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        self.broker().servers_started().await;
        Ok(resources::resources(self.broker()).await)
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        self.broker().servers_started().await;
        Ok(resources::templates(self.broker()).await)
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let client = self.connection.client(&context);
        let read_it = |context| resources::resource(self.broker(), request, None, context);
        read(&client, read_it).await
    }
}
