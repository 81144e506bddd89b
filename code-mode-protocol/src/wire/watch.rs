//! The native wire as somebody sees it who carries its bytes: a host that lends a worker, and wants
//! to know of its cells.
//!
//! Nothing is changed or held up. What cannot be read is passed over: both ends may be strangers.

use super::frame::PREFIX_BYTES;
use super::native::{Announcements, CellEnd, FromWorker, ToWorker, Used, decode, decode_start};

/// The most of a frame to a worker that is kept: it begins with what follows it, and a cell's number.
const KEPT_TO: usize = 64 << 10;
/// The most of a frame of a worker that is kept until all of it came. The end of a cell is smaller.
const KEPT_FROM: usize = 2 << 20;

/// What passes in one direction.
#[derive(Debug)]
pub struct Watch {
    /// The most of a frame that is kept.
    most: usize,
    at: At,
    /// The first frame is the greeting.
    is_greeted: bool,
    kept: Vec<u8>,
}

#[derive(Debug)]
enum At {
    /// In the length of a frame; so much of it came.
    Length([u8; PREFIX_BYTES], usize),
    /// In a frame, of which so many bytes are missing.
    Content(usize),
    /// In the texts behind a frame, of which so many bytes are missing.
    Texts(u64),
}

impl Default for At {
    fn default() -> Self {
        Self::Length([0; PREFIX_BYTES], 0)
    }
}

impl Watch {
    /// What passes to a worker.
    pub fn to_worker() -> Self {
        Self::keeping(KEPT_TO)
    }

    /// What passes from a worker.
    pub fn from_worker() -> Self {
        Self::keeping(KEPT_FROM)
    }

    fn keeping(most: usize) -> Self {
        Self {
            most,
            at: At::default(),
            is_greeted: false,
            kept: Vec::new(),
        }
    }

    /// Some bytes pass. `frame` gets the content of each frame that is complete with them, or as much
    /// of it as is kept.
    pub fn pass(&mut self, mut bytes: &[u8], mut frame: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Length(length, came) => {
                    let (more, rest) = bytes.split_at(bytes.len().min(PREFIX_BYTES - *came));
                    if let Some(place) = length.get_mut(*came..*came + more.len()) {
                        place.copy_from_slice(more);
                    }
                    *came += more.len();
                    bytes = rest;
                    if *came == PREFIX_BYTES {
                        self.at = At::Content(u32::from_le_bytes(*length) as usize);
                        self.frame_ends(&mut frame);
                    }
                }
                At::Content(missing) => {
                    let (more, rest) = bytes.split_at(bytes.len().min(*missing));
                    *missing -= more.len();
                    bytes = rest;
                    let room = self.most.saturating_sub(self.kept.len()).min(more.len());
                    self.kept.extend_from_slice(&more[..room]);
                    self.frame_ends(&mut frame);
                }
                At::Texts(missing) => {
                    let passed =
                        usize::try_from(*missing).map_or(bytes.len(), |it| it.min(bytes.len()));
                    *missing -= passed as u64;
                    bytes = bytes.get(passed..).unwrap_or_default();
                    if *missing == 0 {
                        self.at = At::default();
                    }
                }
            }
        }
    }

    /// Looks at a frame where all of it came.
    fn frame_ends(&mut self, frame: &mut impl FnMut(&[u8])) {
        let At::Content(0) = self.at else {
            return;
        };
        let kept = std::mem::take(&mut self.kept);
        self.at = At::default();
        if !std::mem::replace(&mut self.is_greeted, true) {
            return;
        }
        let announced = decode_start::<Announcements>(&kept);
        let texts = announced.iter().flat_map(|all| all.as_slice());
        match texts.map(|text| u64::from(text.bytes)).sum() {
            0 => {}
            bytes => self.at = At::Texts(bytes),
        }
        frame(&kept);
    }
}

/// The cell that a frame to a worker begins, where it begins one.
pub fn begun(frame: &[u8]) -> Option<u64> {
    let (_, variant, cell) = decode_start::<(Announcements, u32, u64)>(frame)?;
    (variant == ToWorker::EXECUTE).then_some(cell)
}

/// The cell that a frame of a worker ends, with its end and what it used.
pub fn ended(frame: &[u8]) -> Option<(u64, CellEnd, Used)> {
    let (_, variant, _) = decode_start::<(Announcements, u32, u64)>(frame)?;
    if variant != FromWorker::ENDED {
        return None;
    }
    match decode::<(Announcements, FromWorker)>(frame).ok()? {
        (
            _,
            FromWorker::Ended {
                cell, end, used, ..
            },
        ) => Some((cell, end, used)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContentItem;

    fn bytes_of(frames: Vec<super::super::frame::Frame>) -> Vec<u8> {
        let greeting = [5, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];
        let parts = frames.into_iter().flat_map(|frame| frame.into_parts());
        let mut bytes = greeting.to_vec();
        parts.for_each(|part| bytes.extend_from_slice(&part));
        bytes
    }

    fn execute(cell: u64, source: String) -> ToWorker {
        ToWorker::Execute {
            cell,
            tools: 0,
            source,
            to_pending: false,
            constants: Vec::new(),
            determinism: None,
            resumed: None,
            idle_after: None,
            traceparent: None,
        }
    }

    fn end(cell: u64, items: Vec<ContentItem>) -> FromWorker {
        FromWorker::Ended {
            cell,
            items: items.into(),
            end: CellEnd::Completed,
            used: Used::default(),
        }
    }

    #[test]
    fn cells_are_seen_whatever_lies_between_and_however_the_bytes_are_cut() {
        let to = bytes_of(vec![
            ToWorker::Terminate { cell: 1 }.encode().expect("a frame"),
            execute(1, "small".to_owned()).encode().expect("a frame"),
            execute(200, "x".repeat(300_000)).encode().expect("a frame"),
            ToWorker::Notified { cell: 3 }.encode().expect("a frame"),
            execute(70_000, String::new()).encode().expect("a frame"),
        ]);
        let large = vec![
            ContentItem::text("y".repeat(300_000)),
            ContentItem::text("z"),
        ];
        let from = bytes_of(vec![
            end(1, Vec::new()).encode().expect("a frame"),
            end(200, large).encode().expect("a frame"),
            end(70_000, vec![ContentItem::text("w".repeat(60_000))])
                .encode()
                .expect("a frame"),
        ]);
        for step in [1, 3, 4096, usize::MAX] {
            let (mut watch, mut cells) = (Watch::to_worker(), Vec::new());
            for piece in to.chunks(step.min(to.len())) {
                watch.pass(piece, |frame| cells.extend(begun(frame)));
            }
            assert_eq!(cells, [1, 200, 70_000], "{step}");
            let (mut watch, mut cells) = (Watch::from_worker(), Vec::new());
            for piece in from.chunks(step.min(from.len())) {
                watch.pass(piece, |frame| cells.extend(ended(frame).map(|end| end.0)));
            }
            assert_eq!(cells, [1, 200, 70_000], "{step}");
        }
    }

    #[test]
    fn noise_is_passed_over() {
        let mut watch = Watch::from_worker();
        let mut noise = vec![0xff; 100];
        noise[..4].copy_from_slice(&[10, 0, 0, 0]);
        noise[14..18].copy_from_slice(&[20, 0, 0, 0]);
        watch.pass(&noise, |frame| {
            assert_eq!(begun(frame), None);
            assert!(ended(frame).is_none());
        });
    }
}
