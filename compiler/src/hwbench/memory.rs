//! Bandwidths: reading, writing and copying a buffer of the size of each level of the memory hierarchy,
//! with the widest vectors of the CPU.

use super::clock;
use super::routine::Routine;
use crate::emit::cpuid::Feature;
use crate::emit::jit::JitError;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, ptr, r8, r9, rcx, rdi, rdx, rsi, xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, ymm0, ymm1, ymm2, ymm3, ymm4, ymm5,
    ymm6, ymm7, zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7,
};
use std::fs;
use tfc_runtime::Buffer;

/// A level of the memory hierarchy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    /// `L1`, `L2`, `L3` or `memory`.
    pub name: &'static str,
    /// Its size in bytes; `u64::MAX` for memory.
    pub size: u64,
}

/// Bandwidths of a level in bytes per second, of all threads together.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    /// The level.
    pub level: Level,
    /// Bytes of the buffers that were used, of all threads together.
    pub bytes: usize,
    /// Bytes read.
    pub read: f64,
    /// Bytes written, to memory that is in the cache or has to be fetched first.
    pub write: f64,
    /// Bytes read and written while copying, so twice what is copied.
    pub copy: f64,
}

/// The levels of this machine, as the operating system tells; typical ones where it does not.
pub fn levels() -> Vec<Level> {
    let mut sizes = [32 << 10, 1 << 20, 32 << 20];
    let mut found = [false; 3];
    for index in 0..8 {
        let file = |name: &str| {
            let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}")).unwrap_or_default();
            text.trim().to_string()
        };
        let level = file("level").parse::<usize>().ok().filter(|l| (1..=3).contains(l));
        let unit = |text: &str| match text.chars().last() {
            Some('K') => 1 << 10,
            Some('M') => 1 << 20,
            _ => 1,
        };
        let size = file("size");
        if let (Some(level), Ok(n)) = (level, size.trim_end_matches(['K', 'M']).parse::<u64>())
            && file("type") != "Instruction"
        {
            sizes[level - 1] = n * unit(&size);
            found[level - 1] = true;
        }
    }
    let has_l3 = found[2] || !found[0];
    let caches = ["L1", "L2", "L3"].into_iter().zip(sizes).map(|(name, size)| Level { name, size });
    caches.filter(|l| l.name != "L3" || has_l3).chain([Level { name: "memory", size: u64::MAX }]).collect()
}

/// Measures a level. `below` is the level before it, `last` the size of the last cache.
///
/// # Errors
/// When there is no memory.
#[allow(unsafe_code, reason = "runs loops that were just assembled on buffers of this function")]
pub fn measure(level: Level, below: u64, last: u64, threads: usize) -> Result<Bandwidth, JitError> {
    /// Buffers are multiples of this many bytes: 8 vectors of 512 bits.
    const BLOCK: usize = 512;
    // Half of a private cache; of a shared one a part for each thread that the caches before it cannot
    // hold; of memory four times the last cache.
    let bytes = match level.name {
        "memory" => (4 * last).clamp(128 << 20, 1 << 30) / threads as u64,
        "L3" => (level.size / 2 / threads as u64).max(2 * below),
        _ => level.size / 2,
    };
    let bytes = (bytes as usize / BLOCK).max(1) * BLOCK;
    let mut buffers = vec![];
    for _ in 0..threads {
        let mut buffer = Buffer::new(bytes).map_err(|e| JitError::Memory(e.to_string()))?;
        buffer.fill(1);
        buffers.push(buffer);
    }
    // The halves of a buffer are the two sides of a copy.
    let half = bytes / BLOCK / 2 * BLOCK;
    let args: Vec<[u64; 3]> = buffers.iter_mut().map(|b| b.as_mut_ptr() as u64).map(|p| [p, bytes as u64, 0]).collect();
    let copy_args: Vec<[u64; 3]> = args.iter().map(|a| [a[0], half as u64, a[0] + half as u64]).collect();
    let rate = |kind: Kind| -> Result<f64, JitError> {
        let routine = Routine::new(|a| rounds(a, kind))?;
        let args = if kind == Kind::Copy { &copy_args } else { &args };
        // SAFETY: each thread has a buffer of its own, whose bytes the words name.
        let seconds = clock::seconds_per_round(threads, &|t, rounds| unsafe { routine.call(&args[t], 0, rounds) });
        Ok(if kind == Kind::Copy { 2 * half } else { bytes } as f64 * threads as f64 / seconds)
    };
    let (read, write) = (rate(Kind::Read)?, rate(Kind::Write)?);
    let copy = if half > 0 { rate(Kind::Copy)? } else { 0.0 };
    Ok(Bandwidth { level, bytes: bytes * threads, read, write, copy })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
    Copy,
}

/// `end - begin` times over `args[1]` bytes (a multiple of a block) from `args[0]` on; a copy goes to
/// `args[2]`.
fn rounds(a: &mut CodeAssembler, kind: Kind) -> Result<(), IcedError> {
    a.sub(rdx, rsi)?;
    let (mut top, mut inner, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.jle(done)?;
    a.set_label(&mut top)?;
    a.mov(rcx, ptr(rdi))?;
    a.mov(r8, ptr(rdi + 8))?;
    a.mov(r9, ptr(rdi + 16))?;
    a.set_label(&mut inner)?;
    let width = if Feature::Avx512Vnni.is_here() {
        block(a, kind, 64)?
    } else if Feature::Avx2.is_here() {
        block(a, kind, 32)?
    } else {
        block(a, kind, 16)?
    };
    a.add(rcx, 8 * width)?;
    a.add(r9, 8 * width)?;
    a.sub(r8, 8 * width)?;
    a.jnz(inner)?;
    a.dec(rdx)?;
    a.jnz(top)?;
    a.set_label(&mut done)?;
    if Feature::Avx2.is_here() {
        a.vzeroupper()?;
    }
    a.ret()
}

/// Eight vectors of `width` bytes from or to `rcx`; a copy goes to `r9`.
fn block(a: &mut CodeAssembler, kind: Kind, width: i32) -> Result<i32, IcedError> {
    let (x, y, z) = (
        [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7],
        [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7],
        [zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7],
    );
    for i in 0..8usize {
        let at = i as i32 * width;
        if kind != Kind::Write {
            match width {
                64 => a.vmovups(z[i], ptr(rcx + at))?,
                32 => a.vmovups(y[i], ptr(rcx + at))?,
                _ => a.movups(x[i], ptr(rcx + at))?,
            }
        }
        if kind != Kind::Read {
            let to = if kind == Kind::Copy { r9 } else { rcx };
            match width {
                64 => a.vmovups(ptr(to + at), z[i])?,
                32 => a.vmovups(ptr(to + at), y[i])?,
                _ => a.movups(ptr(to + at), x[i])?,
            }
        }
    }
    Ok(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_copies() {
        if cfg!(not(target_arch = "x86_64")) {
            return;
        }
        let mut bytes: Vec<u8> = (0..2048).map(|i| (i % 251) as u8).collect();
        let routine = Routine::new(|a| rounds(a, Kind::Copy)).unwrap();
        let p = bytes.as_mut_ptr() as u64;
        #[allow(unsafe_code, reason = "runs the loop that was just assembled")]
        // SAFETY: 1024 bytes are read from the first half and written to the second.
        unsafe {
            routine.call(&[p, 1024, p + 1024], 0, 1);
        }
        assert_eq!(bytes[..1024], bytes[1024..]);
    }

    #[test]
    fn levels_grow() {
        let levels = levels();
        assert!(levels.windows(2).all(|l| l[0].size < l[1].size), "{levels:?}");
        assert_eq!(levels.last().map(|l| l.name), Some("memory"));
    }
}
