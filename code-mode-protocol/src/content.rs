//! What a cell puts out.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One piece of a cell's output, in the form the stdio wire and a model's
/// function-call output use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentItem {
    /// Text.
    Text {
        /// The text itself.
        text: String,
        /// Marks console lines and warnings of guided sessions; `None` for a result of the program.
        note: Option<Note>,
    },
    /// An image.
    Image {
        /// A `data:` URL.
        image_url: String,
        /// How closely a model should look.
        detail: ImageDetail,
    },
    /// A sound.
    Audio {
        /// A `data:` URL.
        audio_url: String,
    },
}

impl ContentItem {
    /// A text item.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text {
            text: text.into(),
            note: None,
        }
    }

    /// A console line or a warning. Its text begins with a word in brackets, for a model:
    /// `[log] ...`.
    pub fn note(note: Note, text: impl Into<String>) -> Self {
        Self::Text {
            text: text.into(),
            note: Some(note),
        }
    }

    /// How many bytes the item counts against [`Limits::max_output_bytes`]:
    /// those of its text or URL.
    ///
    /// [`Limits::max_output_bytes`]: crate::Limits::max_output_bytes
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Image { image_url, .. } => image_url.len(),
            Self::Audio { audio_url } => audio_url.len(),
        }
    }
}

/// Marks a text in a cell's output as a console line or a warning. A front end that shows output to a
/// person, or passes it on as data, separates these texts from the program's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Note {
    /// The program wrote it to its `console`.
    Log,
    /// The runtime advises: what the program does is probably not what it means.
    Warning,
    /// The runtime warns that something which the program began has no end: a call without an
    /// answer, a timer that was never reached, or a rejection that nobody handled.
    Unfinished,
}

/// The form in JSON: an object whose `type` says what it is.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ContentItem", tag = "type", deny_unknown_fields)]
enum Tagged {
    #[serde(rename = "input_text")]
    Text {
        text: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<Note>,
    },
    #[serde(rename = "input_image")]
    Image {
        image_url: String,
        detail: ImageDetail,
    },
    #[serde(rename = "input_audio")]
    Audio { audio_url: String },
}

/// The form in bincode, which cannot read a tag before it knows the type.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ContentItem")]
enum Plain {
    Text {
        text: String,
        note: Option<Note>,
    },
    Image {
        image_url: String,
        detail: ImageDetail,
    },
    Audio {
        audio_url: String,
    },
}

impl Serialize for ContentItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            Tagged::serialize(self, serializer)
        } else {
            Plain::serialize(self, serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ContentItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            Tagged::deserialize(deserializer)
        } else {
            Plain::deserialize(deserializer)
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
