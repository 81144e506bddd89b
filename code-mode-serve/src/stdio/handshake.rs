//! The first message of a connection and its answer.

use code_mode_protocol::wire::stdio::{
    CAPABILITIES, ClientMessage, GUIDED, Hello, HostMessage, MessageError, Rejection, VERSION,
};

/// The capabilities that a connection has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capabilities {
    /// `delegate-capacity-4096`: that many callbacks without an answer, not 128.
    pub(super) large_delegate: bool,
    /// `guided-sessions-v1`: what the SDKs of this project use.
    pub(super) guided: bool,
}

/// Answers a first message: what the connection has, or `None` where it was
/// refused.
///
/// # Errors
/// For anything but a message of the wire, or a hello that contradicts itself;
/// that ends the connection without an answer, as later in it.
pub(super) fn answer(
    content: &[u8],
) -> Result<(HostMessage<'static>, Option<Capabilities>), MessageError> {
    let ClientMessage::Hello(hello) = ClientMessage::parse(content)? else {
        let message = "first message must be connection/hello";
        return Ok((rejected(Rejection::InvalidHello { message }), None));
    };
    let Hello {
        supported_versions,
        required_capabilities,
        optional_capabilities,
    } = hello;
    if !supported_versions.contains(&VERSION) {
        let supported_versions = [VERSION];
        return Ok((
            rejected(Rejection::NoCompatibleVersion { supported_versions }),
            None,
        ));
    }
    let known = |name: &String| CAPABILITIES.contains(&name.as_str());
    if let Some(capability) = required_capabilities.iter().find(|name| !known(name)) {
        let capability = capability.clone();
        return Ok((
            rejected(Rejection::MissingRequiredCapability { capability }),
            None,
        ));
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
        large_delegate: asked.contains(&"delegate-capacity-4096"),
        guided: asked.contains(&GUIDED),
    };
    let ready = HostMessage::Ready {
        selected_version: VERSION,
        capabilities: asked,
    };
    Ok((ready, Some(capabilities)))
}

fn rejected(reason: Rejection) -> HostMessage<'static> {
    HostMessage::Rejected { reason }
}
