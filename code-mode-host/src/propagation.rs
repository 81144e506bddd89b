//! How the spans of this program are connected with those of others.

use code_mode_protocol::TraceContext;
use tracing::Span;

/// Connects the spans of a provider with those of other programs. An agent core that exports its
/// spans implements it with the library it exports with, and gives it to
/// [`ProviderOptions::propagation`](crate::ProviderOptions::propagation()). Every method has a
/// default that does nothing.
pub trait Propagation: Send + Sync {
    /// What another program needs to continue the trace below `span`; `None` where the span is not
    /// exported.
    fn context(&self, span: &Span) -> Option<TraceContext> {
        let _ = span;
        None
    }

    /// Makes `span` a child of another program's span. A `parent` that does not parse is ignored.
    fn set_parent(&self, span: &Span, parent: &TraceContext) {
        let _ = (span, parent);
    }
}

/// Spans that are not connected with those of others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NoPropagation;

impl Propagation for NoPropagation {}
