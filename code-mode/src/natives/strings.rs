//! The content of V8's strings.

/// How much of a string is looked at and copied at a time, so that it is still near
/// when it is copied.
const PIECE: usize = 16 << 10;

/// A string's text; halves of characters become U+FFFD.
pub(super) fn text(scope: &mut v8::PinScope, string: v8::Local<v8::String>) -> String {
    if string.length() < PIECE || !string.is_onebyte() {
        return string.to_rust_string_lossy(scope);
    }
    let mut text = String::with_capacity(string.length());
    for_each_piece(scope, string, |piece| text.push_str(piece));
    text
}

/// Shows the text of a string whose characters have one byte, piece by piece; of any
/// other nothing.
pub(super) fn for_each_piece(
    scope: &mut v8::PinScope,
    string: v8::Local<v8::String>,
    mut show: impl FnMut(&str),
) {
    let view = v8::ValueView::new(scope, string);
    let v8::ValueViewData::OneByte(latin1) = view.data() else {
        return;
    };
    for piece in latin1.chunks(PIECE) {
        match std::str::from_utf8(piece) {
            Ok(ascii) if piece.is_ascii() => show(ascii),
            _ => {
                let piece: String = piece.iter().map(|byte| char::from(*byte)).collect();
                show(&piece);
            }
        }
    }
}
