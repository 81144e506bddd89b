//! Very large texts are read in the sender's memory.

use std::cell::Cell;
use std::io;

use bytes::BytesMut;
use code_mode_protocol::CellId;
use code_mode_protocol::frame::FrameError;
use code_mode_protocol::message::{Lender, Loans, MessageReader};
use code_mode_protocol::native::FromWorker;

fn notification(text: &str) -> FromWorker {
    FromWorker::Notify {
        call: 1,
        cell_id: CellId::nth(1),
        text: text.to_owned(),
    }
}

/// The bytes of notifications of which the very large ones are lent.
fn lent(texts: &[&str]) -> Vec<u8> {
    let loans = Loans::default();
    let mut bytes = BytesMut::new();
    for text in texts {
        let content = notification(text).encode_lending(&loans).expect("encodes");
        content.put(&mut bytes).expect("small");
    }
    bytes.to_vec()
}

/// Memory that has this content, wherever it is read first.
struct Memory {
    content: Vec<u8>,
    begins: Cell<Option<u64>>,
}

impl Lender for Memory {
    fn read(&self, address: u64, bytes: usize, to: &mut Vec<u8>) -> io::Result<()> {
        let begins = self.begins.get().unwrap_or(address);
        self.begins.set(Some(begins));
        let from = (address - begins) as usize;
        let there = self.content.get(from..from + bytes);
        to.extend(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn memory(content: &[u8]) -> Option<Memory> {
    Some(Memory {
        content: content.to_vec(),
        begins: Cell::new(None),
    })
}

/// The texts of the notifications in these bytes, and the loans that were returned.
fn received(bytes: &[u8], lender: Option<Memory>) -> Result<(Vec<String>, Vec<u64>), FrameError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let mut messages = MessageReader::new(bytes, 64 << 20);
        if let Some(lender) = lender {
            messages.borrow_from(Box::new(lender));
        }
        let (mut texts, mut returned) = (Vec::new(), Vec::new());
        while let Some(message) = messages.next().await? {
            returned.extend(messages.take_returned());
            if let FromWorker::Notify { text, .. } = message {
                texts.push(text);
            }
        }
        Ok((texts, returned))
    })
}

#[test]
fn a_very_large_text_is_read_from_its_lender_and_returned() {
    let large = "aé€😀".repeat(300_000);
    let texts = ["small", &large, &large[..100_000], "small"];
    let bytes = lent(&texts);
    assert!(bytes.len() < 200_000);
    let (got, returned) = received(&bytes, memory(large.as_bytes())).expect("received");
    assert!(got == texts);
    assert_eq!(returned, [1]);
}

#[test]
fn a_text_that_is_lent_unasked_is_refused() {
    let bytes = lent(&["a".repeat(2 << 20).as_str()]);
    let refused = received(&bytes, None);
    assert!(matches!(refused, Err(FrameError::Malformed(_))));
}

#[test]
fn a_lent_text_past_the_limit_is_refused_before_it_is_read() {
    let large = "a".repeat(65 << 20);
    let refused = received(&lent(&[&large]), memory(b""));
    assert!(matches!(refused, Err(FrameError::Malformed(_))));
}

#[test]
fn a_lent_text_that_is_not_utf_8_is_refused() {
    let large = "a".repeat(2 << 20);
    let mut content = large.clone().into_bytes();
    content[1_500_000] = 0xff;
    let refused = received(&lent(&[&large]), memory(&content));
    assert!(matches!(refused, Err(FrameError::Malformed(_))));
}

#[test]
fn a_lender_whose_memory_ends_early_is_an_error() {
    let large = "a".repeat(2 << 20);
    let refused = received(&lent(&[&large]), memory(&large.as_bytes()[..1_500_000]));
    assert!(matches!(refused, Err(FrameError::Io(_))));
}
