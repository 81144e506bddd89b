//! What the fuzzer reaches of this wire: every request as it comes, decoded and checked.

use prost::Message;

use super::{check, wire};

/// Decodes bytes as each request, and checks its content as its method does.
pub fn decode_and_check(bytes: &[u8]) {
    if let Ok(request) = wire::ExecuteRequest::decode(bytes) {
        let again = wire::ExecuteRequest::decode(request.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&request));
        let _ = check::uuid(&request.session_id, "session ID");
        let _ = check::id(request.execution_id, "execution ID");
        for definition in request.enabled_tools {
            if let Ok(checked) = check::definition(definition) {
                // Its description for a model, and its schema for inputs.
                let _ = code_mode_host::describe::declaration(&checked);
            }
        }
    }
    if let Ok(request) = wire::SubscribeToToolCallsRequest::decode(bytes) {
        for name in request.tool_names {
            let _ = check::tool_name(name);
        }
    }
    if let Ok(request) = wire::CompleteToolCallRequest::decode(bytes) {
        use wire::complete_tool_call_request::Outcome;
        let _ = check::uuid(&request.invocation_id, "tool invocation ID");
        if let Some(Outcome::Succeeded(succeeded)) = request.outcome {
            let _ = check::json_of(succeeded.output_json);
        }
    }
    let _ = wire::OpenSessionRequest::decode(bytes);
    let _ = wire::WaitRequest::decode(bytes);
    let _ = wire::TerminateRequest::decode(bytes);
    let _ = wire::YieldObservationRequest::decode(bytes);
    let _ = wire::CancelWaitRequest::decode(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = super::Address::parse(text);
    }
}
