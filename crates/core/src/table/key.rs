//! Keys whose bytes sort as their values do.

use crate::subspace::{escape_into, unescape};

/// A type whose encoded bytes sort as its values do.
///
/// `encode` may leave the end open, as strings do; `encode_part` must end recognisably, so that parts of a tuple can
/// follow one another.
pub trait TableKey: Sized {
    /// Appends the key where nothing follows it.
    fn encode(&self, out: &mut Vec<u8>) {
        self.encode_part(out);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`KeyError`] if the bytes are not of this type.
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        Self::decode_part(input)
    }

    /// Appends the key as a part of a tuple.
    fn encode_part(&self, out: &mut Vec<u8>);

    /// Reads what [`encode_part`](Self::encode_part) wrote, and moves `input` behind it.
    ///
    /// # Errors
    /// [`KeyError`] if the bytes are not of this type.
    fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError>;
}

/// Bytes that are not a key of the expected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key of this type")]
pub struct KeyError;

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], KeyError> {
    let (bytes, rest) = input.split_first_chunk().ok_or(KeyError)?;
    *input = rest;
    Ok(*bytes)
}

impl TableKey for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        Ok(std::mem::take(input).to_vec())
    }

    fn encode_part(&self, out: &mut Vec<u8>) {
        escape_into(self, out);
    }

    fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError> {
        unescape(input).ok_or(KeyError)
    }
}

impl TableKey for String {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        Self::from_utf8(std::mem::take(input).to_vec()).map_err(|_| KeyError)
    }

    fn encode_part(&self, out: &mut Vec<u8>) {
        escape_into(self.as_bytes(), out);
    }

    fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError> {
        Self::from_utf8(unescape(input).ok_or(KeyError)?).map_err(|_| KeyError)
    }
}

impl<const N: usize> TableKey for [u8; N] {
    fn encode_part(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError> {
        take(input)
    }
}

macro_rules! unsigned {
    ($($int:ty),*) => {$(
        impl TableKey for $int {
            fn encode_part(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError> {
                take(input).map(Self::from_be_bytes)
            }
        }
    )*};
}

// Two's complement sorts negative numbers above positive ones; flipping the sign bit puts them below.
macro_rules! signed {
    ($($int:ty),*) => {$(
        impl TableKey for $int {
            fn encode_part(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&(self ^ Self::MIN).to_be_bytes());
            }

            fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError> {
                take(input).map(|bytes| Self::from_be_bytes(bytes) ^ Self::MIN)
            }
        }
    )*};
}

unsigned!(u8, u16, u32, u64, u128);
signed!(i8, i16, i32, i64, i128);

macro_rules! tuple {
    ($($part:ident $index:tt),+) => {
        impl<$($part: TableKey),+> TableKey for ($($part,)+) {
            fn encode_part(&self, out: &mut Vec<u8>) {
                $(self.$index.encode_part(out);)+
            }

            fn decode_part(input: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(($($part::decode_part(input)?,)+))
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Debug;

    fn holds<K: TableKey + Ord + Debug>(a: &K, b: &K) -> Result<(), TestCaseError> {
        let encode = |key: &K| {
            let mut out = Vec::new();
            key.encode(&mut out);
            out
        };
        prop_assert_eq!(encode(a).cmp(&encode(b)), a.cmp(b));
        let bytes = encode(a);
        let mut input = &bytes[..];
        prop_assert_eq!(&K::decode(&mut input).unwrap(), a);
        prop_assert!(input.is_empty());
        Ok(())
    }

    proptest! {
        #[test]
        fn bytes_sort_as_their_values_do(
            strings in any::<(String, String)>(),
            bytes in any::<(Vec<u8>, Vec<u8>)>(),
            signed in any::<(i64, i64)>(),
            unsigned in any::<(u32, u32)>(),
            small in any::<(i8, i8)>(),
            arrays in any::<([u8; 3], [u8; 3])>(),
        ) {
            holds(&strings.0, &strings.1)?;
            holds(&bytes.0, &bytes.1)?;
            holds(&signed.0, &signed.1)?;
            holds(&unsigned.0, &unsigned.1)?;
            holds(&small.0, &small.1)?;
            holds(&arrays.0, &arrays.1)?;
        }

        #[test]
        fn tuples_sort_part_by_part(a in any::<(Vec<u8>, String, i32)>(), b in any::<(Vec<u8>, String, i32)>()) {
            holds(&a, &b)?;
            holds(&((a.0.clone(), a.2), a.1.clone()), &((a.0.clone(), b.2), b.1.clone()))?;
            let same_start = (a.0.clone(), b.1.clone(), b.2);
            holds(&a, &same_start)?;
        }
    }
}
