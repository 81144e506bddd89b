//! Lists whose length is checked while they are decoded.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list of at most `MAX` elements. Decoding refuses a longer one before it has
/// made more than `MAX` of them: a small frame can announce millions of elements,
/// and making them would hold up every session of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounded<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> Bounded<T, MAX> {
    /// The most elements there can be.
    pub const MAX: usize = MAX;

    /// The elements.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }

    /// The elements, to look at them.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }

    /// The elements, to change them in place.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// Takes a list whose length its maker knows to be in bounds; the receiver refuses
/// one that is not.
impl<T, const MAX: usize> From<Vec<T>> for Bounded<T, MAX> {
    fn from(list: Vec<T>) -> Self {
        Self(list)
    }
}

impl<T: Serialize, const MAX: usize> Serialize for Bounded<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                /// The allocation before the first element is decoded.
                const AT_FIRST: usize = 1024;
                let announced = list.size_hint().unwrap_or(0);
                if announced > MAX {
                    return Err(A::Error::invalid_length(announced, &self));
                }
                let mut elements = Vec::with_capacity(announced.min(AT_FIRST));
                while let Some(element) = list.next_element()? {
                    if elements.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    elements.push(element);
                }
                Ok(Bounded(elements))
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}
