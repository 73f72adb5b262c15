//! Aligned memory for arenas, tensors and weights.

use crate::abi::ALIGN;
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// From this size on, memory is mapped, in large pages where the system has them: kernels that read many rows
/// at a time have more of them open than a core remembers small ones. Memory is zero without being written, and
/// pages that are never touched are never there.
const MAPPED_FROM: usize = 1 << 20;
/// Bytes of a large page on x86-64 and, with small pages of 4 KiB, on aarch64.
const LARGE_PAGE: usize = 2 << 20;

/// Zero-initialised bytes whose address is a multiple of [`ALIGN`].
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// The bytes begin at the offset.
    Heap(Vec<u8>, usize),
    /// The same.
    Mapped(MmapMut, usize),
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
            let out_of_memory = |_| OutOfMemory { bytes: len };
            let whole = len.checked_next_multiple_of(LARGE_PAGE).ok_or(OutOfMemory { bytes: len })?;
            let map = MmapMut::map_anon(whole.saturating_add(LARGE_PAGE)).map_err(out_of_memory)?;
            let offset = (map.as_ptr() as usize).wrapping_neg() % LARGE_PAGE;
            #[cfg(target_os = "linux")]
            {
                // Only a hint: a kernel without large pages refuses it.
                let _ = map.advise_range(memmap2::Advice::HugePage, offset, whole);
            }
            Memory::Mapped(map, offset)
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
            Memory::Heap(bytes, offset) => &bytes[*offset..][..self.len],
            Memory::Mapped(map, offset) => &map[*offset..][..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(bytes, offset) => &mut bytes[*offset..][..self.len],
            Memory::Mapped(map, offset) => &mut map[*offset..][..self.len],
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
        for len in [0, 1, 63, 64, 1000, MAPPED_FROM - 1, MAPPED_FROM, LARGE_PAGE, LARGE_PAGE + 1] {
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
