//! The first message of a connection and its answer.

use code_mode_protocol::stdio::{
    CAPABILITIES, ClientMessage, Hello, HostMessage, Rejection, VERSION,
};

/// The capabilities that a connection has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capabilities {
    /// `bounded-output-v1`: output is truncated here.
    pub(super) bounded_output: bool,
    /// `delegate-capacity-4096`: that many callbacks without an answer, not 128.
    pub(super) large_delegate: bool,
    /// `session-cell-execution-resource-limits`.
    pub(super) limits: bool,
}

/// Answers a first message: what the connection has, or `None` where it was
/// refused.
pub(super) fn answer(content: &[u8]) -> (HostMessage<'static>, Option<Capabilities>) {
    let hello = match ClientMessage::parse(content) {
        Ok(ClientMessage::Hello(hello)) => hello,
        _ => {
            let message = "first message must be connection/hello";
            return (rejected(Rejection::InvalidHello { message }), None);
        }
    };
    let Hello {
        supported_versions,
        required_capabilities,
        optional_capabilities,
    } = hello;
    if !supported_versions.contains(&VERSION) {
        let supported_versions = [VERSION];
        return (
            rejected(Rejection::NoCompatibleVersion { supported_versions }),
            None,
        );
    }
    let known = |name: &String| CAPABILITIES.contains(&name.as_str());
    if let Some(capability) = required_capabilities.iter().find(|name| !known(name)) {
        let capability = capability.clone();
        return (
            rejected(Rejection::MissingRequiredCapability { capability }),
            None,
        );
    }
    let asked: Vec<&str> = CAPABILITIES
        .into_iter()
        .filter(|name| {
            required_capabilities
                .iter()
                .chain(&optional_capabilities)
                .any(|asked| asked == name)
        })
        .collect();
    let capabilities = Capabilities {
        bounded_output: asked.contains(&"bounded-output-v1"),
        large_delegate: asked.contains(&"delegate-capacity-4096"),
        limits: asked.contains(&"session-cell-execution-resource-limits"),
    };
    let ready = HostMessage::Ready {
        selected_version: VERSION,
        capabilities: asked,
    };
    (ready, Some(capabilities))
}

fn rejected(reason: Rejection) -> HostMessage<'static> {
    HostMessage::Rejected { reason }
}
