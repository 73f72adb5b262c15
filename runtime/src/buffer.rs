//! Aligned memory for arenas, tensors and weights.

use crate::abi::ALIGN;
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// From this size on, memory is mapped: it is zero without being written, and pages that are never
/// touched are never there.
const MAPPED_FROM: usize = 1 << 20;
/// From this size on, large pages are asked for.
const LARGE_PAGES_FROM: usize = 4 << 20;

/// Zero-initialised bytes whose address is a multiple of [`ALIGN`].
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// `len` bytes begin at the offset.
    Heap(Vec<u8>, usize),
    Mapped(MmapMut),
}

/// The system has no memory of that size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot allocate {bytes} bytes")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

impl Buffer {
    /// `len` bytes of zero.
    pub fn new(len: usize) -> Result<Buffer, OutOfMemory> {
        let memory = if len < MAPPED_FROM {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(len + ALIGN - 1).map_err(|_| OutOfMemory { bytes: len })?;
            bytes.resize(len + ALIGN - 1, 0);
            let offset = (bytes.as_ptr() as usize).wrapping_neg() % ALIGN;
            Memory::Heap(bytes, offset)
        } else {
            let map = MmapMut::map_anon(len).map_err(|_| OutOfMemory { bytes: len })?;
            #[cfg(target_os = "linux")]
            if len >= LARGE_PAGES_FROM {
                // Only a hint: a kernel without large pages refuses it.
                let _ = map.advise(memmap2::Advice::HugePage);
            }
            Memory::Mapped(map)
        };
        Ok(Buffer { memory, len })
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Result<Buffer, OutOfMemory> {
        let mut buffer = Buffer::new(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(bytes, offset) => &bytes[*offset..offset + self.len],
            Memory::Mapped(map) => &map[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(bytes, offset) => &mut bytes[*offset..*offset + self.len],
            Memory::Mapped(map) => &mut map[..self.len],
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zero_and_of_the_asked_size() {
        for len in [0, 1, 63, 64, 1000, MAPPED_FROM - 1, MAPPED_FROM, LARGE_PAGES_FROM + 1] {
            let mut b = Buffer::new(len).unwrap();
            assert_eq!(b.len(), len);
            assert_eq!(b.as_ptr() as usize % ALIGN, 0);
            assert!(b.iter().all(|&x| x == 0));
            b.fill(7);
            let moved = b;
            assert!(moved.iter().all(|&x| x == 7));
        }
        assert_eq!(Buffer::copy_of(b"abc").unwrap()[..], *b"abc");
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert_eq!(Buffer::new(usize::MAX / 2).unwrap_err(), OutOfMemory { bytes: usize::MAX / 2 });
        assert_eq!(Buffer::new(usize::MAX).unwrap_err(), OutOfMemory { bytes: usize::MAX });
    }
}
