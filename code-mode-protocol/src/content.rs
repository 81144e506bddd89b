//! What a cell puts out.

use serde::{Deserialize, Serialize};

/// One piece of a cell's output, in the form the stdio wire and a model's
/// function-call output use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum ContentItem {
    /// Text.
    #[serde(rename = "input_text")]
    Text {
        /// The text itself.
        text: String,
    },
    /// An image.
    #[serde(rename = "input_image")]
    Image {
        /// A `data:` URL.
        image_url: String,
        /// How closely a model should look.
        detail: ImageDetail,
    },
    /// A sound.
    #[serde(rename = "input_audio")]
    Audio {
        /// A `data:` URL.
        audio_url: String,
    },
}

impl ContentItem {
    /// A text item.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// How many bytes the item counts against [`Limits::max_output_bytes`]:
    /// those of its text or URL.
    ///
    /// [`Limits::max_output_bytes`]: crate::Limits::max_output_bytes
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text { text } => text.len(),
            Self::Image { image_url, .. } => image_url.len(),
            Self::Audio { audio_url } => audio_url.len(),
        }
    }
}

/// How closely a model should look at an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageDetail {
    /// The model's provider decides.
    Auto,
    /// A small rendition.
    Low,
    /// A large rendition; what `image()` asks for by default.
    #[default]
    High,
    /// The image as it is.
    Original,
}

impl ImageDetail {
    /// Every detail, by its name in lower case.
    pub const ALL: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("low", Self::Low),
        ("high", Self::High),
        ("original", Self::Original),
    ];

    /// The detail of this name in any case, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, detail)| detail)
    }
}
