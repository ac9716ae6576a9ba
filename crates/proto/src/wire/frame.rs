//! The frame: sixteen bytes of header, then a payload.

/// The length of a frame's header, in bytes.
pub const FRAME_HEADER_LEN: usize = 16;

/// The longest payload of one frame, in bytes. Longer messages travel in fragments.
pub const MAX_FRAME_LEN: usize = 1 << 20;

/// Whoever does not know the kind must end the connection.
pub(super) const CRITICAL: u8 = 0x01;
/// The message goes on in the next frame of this channel.
pub(super) const MORE: u8 = 0x02;
/// The payload is compressed. Only towards whoever has said that it reads that.
pub(super) const COMPRESSED: u8 = 0x04;
/// Flags of the low half that are not known are refused; those of the high half are ignored.
pub(super) const MUST_KNOW: u8 = 0x0F;

/// The header of a frame, little-endian: payload length (4), kind (1), flags (1), channel (2), request id (4), and a
/// CRC-32C (4) over the twelve bytes before it and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) len: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) channel: u16,
    pub(super) request: u32,
    pub(super) crc: u32,
}

impl FrameHeader {
    pub(super) fn from_bytes(bytes: &[u8; FRAME_HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, kind, flags, c0, c1, r0, r1, r2, r3, k0, k1, k2, k3] = *bytes;
        Self {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            kind,
            flags,
            channel: u16::from_le_bytes([c0, c1]),
            request: u32::from_le_bytes([r0, r1, r2, r3]),
            crc: u32::from_le_bytes([k0, k1, k2, k3]),
        }
    }

    /// The header of a payload in `pieces` that follow one another, its CRC computed.
    pub(super) fn seal<P>(kind: u8, flags: u8, channel: u16, request: u32, pieces: &[P]) -> [u8; FRAME_HEADER_LEN]
    where
        P: AsRef<[u8]>,
    {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let len: usize = pieces.iter().map(|piece| piece.as_ref().len()).sum();
        // Fragments are cut at `MAX_FRAME_LEN`, which fits.
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[4] = kind;
        bytes[5] = flags;
        bytes[6..8].copy_from_slice(&channel.to_le_bytes());
        bytes[8..12].copy_from_slice(&request.to_le_bytes());
        let header = crc32c::crc32c(&bytes[..12]);
        let crc = pieces.iter().fold(header, |crc, piece| crc32c::crc32c_append(crc, piece.as_ref()));
        bytes[12..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn verify(&self, header: &[u8], payload: &[u8]) -> bool {
        crc32c::crc32c_append(crc32c::crc32c(&header[..12]), payload) == self.crc
    }
}
