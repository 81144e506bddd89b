//! The state that a client of the stateless era carries from one request to its repeat.

use std::time::Duration;

use rmcp::model::{RequestStateCodec, SealOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long a state is taken at least.
const LIFE: Duration = Duration::from_secs(60 * 60);

/// Which cell asked which questions. Sealed, because it comes back from a stranger; it
/// is bound to the request that it was given for, and a question that was answered is
/// struck off here.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Asked {
    pub(crate) cell: String,
    pub(crate) questions: Vec<String>,
}

/// Seals and opens with a key of this process.
pub(crate) struct Seal(Option<RequestStateCodec>);

impl Seal {
    pub(crate) fn new() -> Self {
        // Two random UUIDs have 244 random bits.
        let key = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        Self::with(key.map(uuid::Uuid::into_bytes).concat())
    }

    /// The seal of a key that outlives this process.
    pub(crate) fn with(key: Vec<u8>) -> Self {
        // It refuses keys that are too short; these are not.
        Self(RequestStateCodec::try_new(key).ok())
    }

    pub(crate) fn seal(&self, asked: &Asked, request: &[u8], life: Duration) -> Option<String> {
        let options = SealOptions::new()
            .ttl(life.max(LIFE))
            .associated_data(request);
        self.0.as_ref()?.seal_json_with(asked, &options).ok()
    }

    /// The state sealed for this request; `None` for another's, or where it is too old.
    pub(crate) fn open(&self, sealed: &str, request: &[u8]) -> Option<Asked> {
        self.0.as_ref()?.open_json_with(sealed, request).ok()
    }
}

/// What binds a state to its request: the tool and its arguments.
pub(crate) fn request_digest(tool: &str, arguments: &impl Serialize) -> Vec<u8> {
    let arguments = serde_json::to_vec(arguments).unwrap_or_default();
    Sha256::new()
        .chain_update(tool)
        .chain_update([0])
        .chain_update(arguments)
        .finalize()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_opened_for_its_own_request_only() {
        let seal = Seal::new();
        let asked = Asked {
            cell: "c".to_owned(),
            questions: vec!["q".to_owned()],
        };
        let request = request_digest("exec", &"code");
        let sealed = seal.seal(&asked, &request, LIFE).expect("sealed");
        assert_eq!(seal.open(&sealed, &request).expect("opened").cell, "c");
        assert!(
            seal.open(&sealed, &request_digest("exec", &"other"))
                .is_none()
        );
        assert!(seal.open("garbage", &request).is_none());
        assert!(Seal::new().open(&sealed, &request).is_none());
    }
}
