//! The server that a client sees: `exec`, `wait`, and what passes through.

use std::sync::{Arc, Mutex, PoisonError};

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, GetPromptRequestParams,
    GetPromptResponse, Implementation, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, LoggingLevel, PaginatedRequestParams, ProtocolVersion,
    ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities, ServerConfig,
    SetLevelRequestMethod, SetLevelRequestParams, SubscriptionFilter, Tool, ToolAnnotations,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};

use super::exec::{self, Caller};
use super::gateway::Gateway;
use super::passthrough;
use super::session::FrontSession;
use super::texts::WAIT;

/// What a client reads of the server as a whole.
const INSTRUCTIONS: &str = "One tool, exec, runs JavaScript programs that call the tools of all connected MCP servers; wait goes on with a program that takes long. Prefer one program for a whole task over several calls: intermediate data then stays out of the conversation.";

/// One connection of the era of sessions, or one request of the stateless one.
pub(super) struct Front {
    gateway: Arc<Gateway>,
    /// The connection's own session.
    own: tokio::sync::OnceCell<Arc<FrontSession>>,
    log_level: Mutex<LoggingLevel>,
}

impl Front {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        Self {
            gateway,
            own: tokio::sync::OnceCell::new(),
            log_level: Mutex::new(LoggingLevel::Info),
        }
    }

    /// Whether a request stands alone.
    fn is_stateless(context: &RequestContext<RoleServer>) -> bool {
        let version = context.meta.protocol_version();
        version.is_some_and(|v| v.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
    }

    fn caller<'a>(&'a self, context: &'a RequestContext<RoleServer>) -> Caller<'a> {
        let stateless = Self::is_stateless(context);
        let elicitation = context
            .client_capabilities()
            .and_then(|capabilities| capabilities.elicitation);
        let level = match stateless {
            true => context.meta.log_level(),
            false => Some(
                *self
                    .log_level
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            ),
        };
        Caller {
            gateway: &self.gateway,
            context,
            stateless,
            // Without a mode named, forms are meant.
            can_ask: (
                elicitation
                    .as_ref()
                    .is_some_and(|e| e.form.is_some() || e.url.is_none()),
                elicitation.is_some_and(|e| e.url.is_some()),
            ),
            hears: level
                .is_some_and(|level| level_number(level) <= level_number(LoggingLevel::Info)),
        }
    }

    /// The connection's session; opened when first asked for.
    async fn own(&self) -> Result<Arc<FrontSession>, String> {
        let opened = self.own.get_or_try_init(|| self.gateway.open()).await;
        opened.cloned().map_err(|error| error.to_string())
    }

    fn tools(&self) -> Vec<Tool> {
        let catalogue = self.gateway.catalogue();
        let mut tools = vec![exec_tool(&catalogue.description), wait_tool()];
        for entry in &catalogue.entries {
            let server = &entry.upstream.config.name;
            let direct = &self.gateway.settings.direct;
            if !direct
                .iter()
                .any(|pattern| pattern.fits(server, &entry.tool.name))
            {
                continue;
            }
            let mut definition = entry.tool.definition.clone();
            definition["name"] = Value::from(entry.identifier.as_str());
            if let Ok(tool) = serde_json::from_value(definition) {
                tools.push(tool);
            }
        }
        tools
    }
}

fn level_number(level: LoggingLevel) -> u8 {
    match level {
        LoggingLevel::Debug => 0,
        LoggingLevel::Info => 1,
        LoggingLevel::Notice => 2,
        LoggingLevel::Warning => 3,
        LoggingLevel::Error => 4,
        LoggingLevel::Critical => 5,
        LoggingLevel::Alert => 6,
        LoggingLevel::Emergency => 7,
    }
}

/// A schema of ours. Some providers refuse anything but a plain object at the top.
fn tool(name: &'static str, description: String, properties: Value, required: &str) -> Tool {
    let schema = json!({
        "type": "object",
        "properties": properties,
        "required": [required],
        "additionalProperties": false,
    });
    let schema = schema.as_object().cloned().unwrap_or_default();
    Tool::new(name, description, Arc::new(schema))
}

fn exec_tool(description: &str) -> Tool {
    let properties = json!({
        "code": {"type": "string", "description": "The program: JavaScript or TypeScript, no code fence."},
        "yield_time_ms": {"type": "integer", "minimum": 0, "description": "How long to wait for the program before it is left running; default 10000."},
        "max_output_tokens": {"type": "integer", "minimum": 0, "description": "Budget of the output; default 10000."},
        "session_id": {"type": "string", "description": "The session of an earlier answer, for its stored values. Without one the connection's session is used, or a new one is opened."},
    });
    tool("exec", description.to_owned(), properties, "code")
        .with_title("Run a program over all tools")
        // What a program does is what its calls do.
        .with_annotations(
            ToolAnnotations::new()
                .read_only(false)
                .destructive(true)
                .idempotent(false)
                .open_world(true),
        )
}

fn wait_tool() -> Tool {
    let properties = json!({
        "cell_id": {"type": "string", "description": "The cell_id that exec gave."},
        "yield_time_ms": {"type": "integer", "minimum": 0, "description": "How long to wait for more; default 10000."},
        "max_output_tokens": {"type": "integer", "minimum": 0, "description": "Budget of the output; default 10000."},
        "terminate": {"type": "boolean", "description": "true stops the program."},
        "decision": {"type": "string", "description": "The user's decision on calls that wait for approval, where the policy lets you pass it on: allow, session or deny."},
    });
    tool("wait", WAIT.to_owned(), properties, "cell_id")
        .with_title("Wait for a running program")
        .with_annotations(
            ToolAnnotations::new()
                .read_only(false)
                .destructive(false)
                .idempotent(false)
                .open_world(true),
        )
}

/// A failure that the model can read.
pub(super) fn failure(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::error(vec![ContentBlock::text(text.into())]).into()
}

impl ServerHandler for Front {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_logging()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_resources()
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
        self.gateway.servers_started().await;
        Ok(ListToolsResult::with_all_items(self.tools()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let caller = self.caller(&context);
        match &*request.name {
            "exec" => exec::exec(&caller, &request, || self.own()).await,
            "wait" => exec::wait(&caller, &request, || self.own()).await,
            name => {
                let tools = self.tools();
                if tools.iter().skip(2).any(|tool| tool.name == name) {
                    return exec::direct(&caller, &request, || self.own()).await;
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

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if Self::is_stateless(&context) {
            return Err(ErrorData::method_not_found::<SetLevelRequestMethod>());
        }
        *self
            .log_level
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = request.level;
        Ok(())
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let mut version = self.gateway.version.subscribe();
        version.mark_unchanged();
        let shutdown = self.gateway.shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = version.changed() => if changed.is_err() { return },
                    () = shutdown.cancelled() => return,
                }
                if context.peer.notify_tool_list_changed().await.is_err() {
                    return;
                }
            }
        });
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
        let mut version = self.gateway.version.subscribe();
        version.mark_unchanged();
        loop {
            tokio::select! {
                changed = version.changed() => if changed.is_err() { return Ok(()) },
                () = context.cancelled() => return Ok(()),
                () = self.gateway.shutdown.cancelled() => return Ok(()),
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
        self.gateway.servers_started().await;
        Ok(passthrough::prompts(&self.gateway).await)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        passthrough::prompt(&self.gateway, request).await
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        self.gateway.servers_started().await;
        Ok(passthrough::resources(&self.gateway).await)
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        self.gateway.servers_started().await;
        Ok(passthrough::templates(&self.gateway).await)
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        passthrough::resource(&self.gateway, request).await
    }
}
