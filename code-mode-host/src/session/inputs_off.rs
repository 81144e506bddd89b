//! Inputs of tools, in a build without the feature `check-inputs`: nothing checks them.

use code_mode_protocol::{NestedToolCall, SessionOptions, ToolSet};

use crate::error::ProviderError;

/// Checks of inputs, of which this build has none.
pub(crate) enum Inputs {}

impl Inputs {
    /// The checks that a session asks for.
    ///
    /// # Errors
    /// [`ProviderError::NotBuilt`] where it asks for some.
    pub(crate) fn of(options: &SessionOptions) -> Result<Option<Self>, ProviderError> {
        match options.check_inputs {
            true => Err(ProviderError::NotBuilt("check-inputs")),
            false => Ok(None),
        }
    }

    pub(super) async fn readable(&self, _: &ToolSet) -> ToolSet {
        match *self {}
    }

    pub(super) async fn refusal(&self, _: &ToolSet, _: &NestedToolCall) -> Option<String> {
        match *self {}
    }
}
