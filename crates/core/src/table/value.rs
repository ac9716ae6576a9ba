//! Values as bytes.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// How values of a table become bytes.
pub trait ValueCodec<V> {
    /// The bytes of `value`.
    ///
    /// # Errors
    /// What the codec reports.
    fn encode(value: &V) -> Result<Vec<u8>, CodecError>;

    /// The value of `bytes`; all of them must be used.
    ///
    /// # Errors
    /// What the codec reports.
    fn decode(bytes: &[u8]) -> Result<V, CodecError>;
}

/// Values through serde as postcard: compact, not self-describing.
#[derive(Debug, Clone, Copy)]
pub struct Postcard;

impl<V: Serialize + DeserializeOwned> ValueCodec<V> for Postcard {
    fn encode(value: &V) -> Result<Vec<u8>, CodecError> {
        Ok(postcard::to_stdvec(value)?)
    }

    fn decode(bytes: &[u8]) -> Result<V, CodecError> {
        match postcard::take_from_bytes(bytes)? {
            (value, []) => Ok(value),
            (_, rest) => Err(format!("{} bytes are left over", rest.len()).into()),
        }
    }
}

/// Values through serde as JSON: readable, and tolerant of added fields.
#[cfg(feature = "json")]
#[derive(Debug, Clone, Copy)]
pub struct Json;

#[cfg(feature = "json")]
impl<V: Serialize + DeserializeOwned> ValueCodec<V> for Json {
    fn encode(value: &V) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(value)?)
    }

    fn decode(bytes: &[u8]) -> Result<V, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// Values that are bytes already.
#[derive(Debug, Clone, Copy)]
pub struct Raw;

impl ValueCodec<Vec<u8>> for Raw {
    fn encode(value: &Vec<u8>) -> Result<Vec<u8>, CodecError> {
        Ok(value.clone())
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

impl ValueCodec<Bytes> for Raw {
    fn encode(value: &Bytes) -> Result<Vec<u8>, CodecError> {
        Ok(value.to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Bytes, CodecError> {
        Ok(Bytes::copy_from_slice(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<C: ValueCodec<(u16, String)>>() -> Vec<u8> {
        let value = (300, "name".to_owned());
        let stored = C::encode(&value).unwrap();
        assert_eq!(C::decode(&stored).unwrap(), value);
        assert!(C::decode(&stored[..stored.len() - 1]).is_err());
        let longer = [&stored[..], b"0"].concat();
        assert!(C::decode(&longer).is_err(), "all of the bytes must be used");
        stored
    }

    #[test]
    fn values_come_back_from_their_bytes_and_nothing_is_left_over() {
        assert_eq!(there_and_back::<Postcard>(), b"\xAC\x02\x04name");
        #[cfg(feature = "json")]
        assert_eq!(there_and_back::<Json>(), b"[300,\"name\"]");
    }

    #[test]
    fn what_is_bytes_already_stays_as_it_is() {
        let bytes = vec![0, 1, 2, 255];
        let stored = <Raw as ValueCodec<Vec<u8>>>::encode(&bytes).unwrap();
        assert_eq!(stored, bytes);
        assert_eq!(<Raw as ValueCodec<Vec<u8>>>::decode(&stored).unwrap(), bytes);
        let shared = Bytes::from(bytes.clone());
        assert_eq!(<Raw as ValueCodec<Bytes>>::encode(&shared).unwrap(), bytes);
        assert_eq!(<Raw as ValueCodec<Bytes>>::decode(&stored).unwrap(), shared);
    }
}
